"""Several sources as one."""

import json
import logging
import pickle

import numpy as np
import pytest

from dinov3_jax.curation import mixture as curation
from dinov3_jax.data.sources import decode, open_source
from dinov3_jax.data.sources.mixture import Member, Mixture, labelled, open_parts
from dinov3_jax.data.sources.parts import Part
from tests.data.sources.test_subset import Named


def test_images_are_those_of_the_parts_and_labels_of_one():
  plain = Named(["p", "q"])
  plain.labels = plain.classes = None
  members = [Member("plain", plain, 0.5), Member("mixed", Named(["a", "b", "c"]), 0.5),
             Member("alone", Named(["x", "y"]), 0.1, True)]
  mixture = pickle.loads(pickle.dumps(Mixture(members)))
  assert len(mixture) == 7 and mixture.classes == ["x", "y"]
  assert mixture.labels.tolist() == [-1] * 5 + [0, 1]  # of the homogeneous part
  assert [mixture.name(i) for i in (0, 2, 6)] == ["plain/p", "mixed/a", "alone/y"]
  assert mixture[3] == {"image": None, "label": -1, "name": "mixed/b"} and mixture[6]["label"] == 1
  assert mixture.encoded(4) == b"c"
  assert [mixture.part(i) for i in (0, 1, 2, 4, 5)] == [0, 0, 1, 1, 2]
  assert labelled(mixture).names == ["x", "y"] and labelled(plain) is plain


def test_what_curation_writes_is_read(tmp_path, images, same, caplog):
  caplog.set_level(logging.INFO)
  curation.write(tmp_path, [
    Part("sampled", str(images), "all", ["a/02.png", "b/01.png", "a/02.png"], weight=3),
    Part("rest", same("tar"), "all", None, weight=1, images=40),
    Part("alone", str(images), "train", None, weight=0.1, homogeneous=True, images=36)])
  source = open_source(tmp_path / "mix.json", "train")
  train = open_source(images, "train")
  assert len(source) == 3 + 40 + len(train) and source.classes == ["a", "b"]
  assert [source.name(i) for i in range(4)] == [
    "sampled/a/02.png", "sampled/b/01.png", "sampled/a/02.png", "rest/a/00.png"]
  assert "sampled 67.5% (3 images), rest 22.5% (40 images), alone 10.0% of the batches" in (
    caplog.text)
  held_out = open_source(tmp_path / "mix.json", "val")
  assert [held_out.name(i) for i in range(len(held_out))] == [
    name for name in map(open_source(images, "val").name, range(len(held_out)))]
  entry = json.loads((tmp_path / "mix.json").read_text())
  entry["sources"][0]["list"] = "rest.txt"
  (tmp_path / "rest.txt").write_text("no.png\nb/01.png\na/02.png\n")
  (tmp_path / "mix.json").write_text(json.dumps(entry))
  with pytest.raises(ValueError, match=r"the list of sampled names 1 images .*no\.png"):
    open_source(tmp_path / "mix.json", "train")


def test_nothing_is_held_out_of_what_is_trained_on(images, tmp_path):
  for part, message in ((Part("a", str(images), "all"), "a, which has labels, is trained on all"),
                        (Part("b", "list", "train"), "no part has labels")):
    if part.source == "list":
      (tmp_path / "x.txt").write_text("".join(f"{path}\n" for path in images.rglob("*.png")))
      part = Part("b", f"manifest:{tmp_path}/x.txt", "train")
    with pytest.raises(ValueError, match=f"holds out no images: .*{message}"):
      open_parts([part], "val", decode)


def test_weights_are_by_count_without_any(images):
  parts = [Part("a", str(images), "all"), Part("b", str(images), "val")]
  mixture = open_parts(parts, "train", decode)
  shares = np.array([member.probability for member in mixture.members])
  np.testing.assert_allclose(shares, np.array([40, len(mixture) - 40]) / len(mixture))
