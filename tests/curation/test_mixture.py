import json

import pytest

from dinov3_jax.curation import mixture
from dinov3_jax.curation.mixture import Part


def test_as_in_the_paper(tmp_path):
  """One batch in ten from one set, the others from three parts by weight."""
  parts = [Part("in1k", "tfds:imagenet2012", "train", images=1_281_167, weight=0.1,
                homogeneous=True),
           Part("clustered", "pool", names=["a.jpg", "b c.jpg", "caf\udce9.jpg"], weight=6),
           Part("retrieved", "pool", names=["b c.jpg"] * 2, weight=3),
           Part("raw", "other", images=5, weight=1)]
  written = mixture.write(tmp_path, parts)
  assert [s["probability"] for s in written["sources"]] == [0.1, 0.6, 0.3, 0.1]
  assert json.loads((tmp_path / "mix.json").read_text()) == written
  again = mixture.read(tmp_path)
  assert [(p.name, p.source, p.split, p.homogeneous, p.count) for p in again] == [
    (p.name, p.source, p.split, p.homogeneous, p.count) for p in parts]
  assert [p.names for p in again] == [p.names for p in parts]
  assert mixture.probabilities(again) == pytest.approx([0.1, 0.6, 0.3, 0.1])


def test_without_weights_every_image_counts_as_much():
  parts = [Part("a", "x", images=30), Part("b", "x", images=10)]
  assert mixture.probabilities(parts) == [0.75, 0.25]


@pytest.mark.parametrize("parts, message", [
  ([], "different names, not none"),
  ([Part("a", "x", images=1), Part("a", "y", images=1)], "different names, not a, a"),
  ([Part("a", "x")], "a has no images"),
  ([Part("a", "x", images=1, homogeneous=True)], "probability of a batch.*not None"),
  ([Part("a", "x", images=1, weight=-1.0)], "must be positive, not -1"),
  ([Part("a", "x", images=1, weight=float("nan"))], "must be positive, not nan"),
  ([Part("a", "x", images=1, weight=1.0), Part("b", "x", images=1)], "or none of them"),
  ([Part("a", "x", images=1, weight=1.0, homogeneous=True), Part("b", "x", images=1)],
   "none for the other parts"),
  ([Part("a", "x", images=1, weight=0.3, homogeneous=True)], "come from nowhere")])
def test_weights_that_make_no_sense(parts, message):
  with pytest.raises(ValueError, match=message):
    mixture.probabilities(parts)


def test_bad_names_and_files(tmp_path):
  for part, message in [(Part("a/b", "x", images=1), "can be no file's name"),
                        (Part("a", "x", names=["b\nc"]), "line break")]:
    with pytest.raises(ValueError, match=message):
      mixture.write(tmp_path, [part])
  with pytest.raises(ValueError, match=r"mix\.json is no mixture \(FileNotFoundError\)"):
    mixture.read(tmp_path)
  mixture.write(tmp_path, [Part("a", "x", names=["1", "2"])])
  (tmp_path / "a.txt").write_text("1\n2")
  with pytest.raises(ValueError, match=r"a\.txt has 1 images, not the 2"):
    mixture.read(tmp_path)
  (tmp_path / "mix.json").write_text("[]")
  with pytest.raises(ValueError, match=r"no mixture \(TypeError\)"):
    mixture.read(tmp_path)
