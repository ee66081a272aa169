"""Every kind of source has the same images, labels and names, and gives the same stream."""

import pickle

import numpy as np
import pytest

from dinov3_jax.data.crops import MultiCrop
from dinov3_jax.data.pipeline import make_pipeline
from dinov3_jax.data.sources import is_spec, open_source
from dinov3_jax.data.sources.opening import kind_of
from tests.data.conftest import KINDS

CROP = MultiCrop(16, 8, locals=1, patch_size=8)


@pytest.fixture(scope="module")
def stream(images):
  source = open_source(images, "train")
  pipeline = make_pipeline(source, [CROP], [1.0], 8)
  batches = [next(pipeline) for _ in range(2)]
  pipeline.close()
  return source, batches


@pytest.mark.parametrize("kind", KINDS)
def test_same_images_labels_and_names(same, stream, kind):
  expected, _ = stream
  spec = same(kind)
  split = "all" if kind == "manifest" else "train"  # a list's names are other ones
  expected = open_source(expected.root, split)
  for _ in range(2):  # with and without an index on disk
    source = pickle.loads(pickle.dumps(open_source(spec, split)))
    assert len(source) == len(expected) and source.classes == ["a", "b"]
    np.testing.assert_array_equal(source.labels, expected.labels)
    for i in range(len(source)):
      ours, theirs = source[i], expected[i]
      np.testing.assert_array_equal(ours["image"], theirs["image"])
      assert ours["label"] == theirs["label"] and ours["name"].endswith(theirs["name"])
      assert source.name(i) == ours["name"] and source.encoded(i) == expected.encoded(i)


@pytest.mark.parametrize("kind", ["tars", "zip", "parquet", "array_record", "bucket"])
def test_same_stream(same, stream, kind):
  pipeline = make_pipeline(open_source(same(kind), "train"), [CROP], [1.0], 8)
  for expected in stream[1]:
    for name, array in next(pipeline).items():
      np.testing.assert_array_equal(array, expected[name])
  pipeline.close()


@pytest.mark.parametrize("spec, message", [
  ("nowhere.tar", "there is no file nowhere.tar"), ("*.zip", r"no file matches \*.zip"),
  ("{00..02}.parquet", "there is no file 00.parquet"), ("tar:empty", "no tar file in empty"),
  ("none://x/y", "none://x/y cannot be opened"), ("memory://nothing", "no image below memory"),
  ("manifest:no.csv", "no.csv cannot be read: No such file"), ("no/mix.json", "is no mixture")])
def test_what_is_not_there_is_one_line(tmp_path, monkeypatch, spec, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match=message) as error:
    open_source(spec, "train")
  assert "\n" not in str(error.value)


def test_a_folder_of_shards_is_known_by_them(same, tmp_path, images):
  spec = same("tar")
  assert len(open_source(spec.removesuffix("/x.tar"), "all")) == 40
  # Beside folders of images, a tar is what they came in.
  (tmp_path / "cat").mkdir()
  (tmp_path / "cat" / "x.png").write_bytes((images / "a" / "00.png").read_bytes())
  (tmp_path / "cats.tar").write_bytes(b"")
  assert open_source(tmp_path, "all").name(0) == "cat/x.png"


def test_the_kind_of_a_spec(same, tmp_path):
  folder = same("tars").removesuffix("/*.tar")
  for spec, expected in (("tar:a/b", ("tar", "a/b")), ("a/b.parquet", ("parquet", "a/b.parquet")),
                         (folder, ("tar", folder)), (str(tmp_path), (None, str(tmp_path))),
                         ("openmoji", (None, "openmoji"))):
    assert kind_of(spec) == expected


def test_a_folder_that_lacks_files_is_no_source(tmp_path, images):
  from dinov3_jax.data.packing import pack
  pack(images, tmp_path, split="train", images_per_shard=10)
  shards = sorted(tmp_path.glob("*.array_record"))
  shards[1].rename(tmp_path / f"{shards[1].name}.new")
  with pytest.raises(ValueError, match=r"has 3 of the 4 files train-\*: finish to copy or to pack"):
    open_source(tmp_path, "train")
  assert len(open_source(f"{tmp_path}/*.array_record", "all")) == len(
    open_source(images, "train")) - 10


@pytest.mark.parametrize("text, expected", [
  ("x.tar", True), ("s3://b/x", True), ("tfds:a", True), ("openmoji", True), ("d/mix.json", True),
  ("manifest:x.csv", True), ("cat.jpg", False), ("photos", False), ("*.png", False)])
def test_specs_are_told_from_paths(text, expected, monkeypatch):
  from dinov3_jax.data.sources import places
  monkeypatch.setattr(places, "files_in", lambda folder: [])
  assert is_spec(text) == expected
