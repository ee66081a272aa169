"""Sets of TensorFlow Datasets, read without TensorFlow."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.sources import DamagedImage, open_source
from dinov3_jax.evals.class_folders import splits_of_source


def encoded(image, **options):
  data = io.BytesIO()
  image.save(data, **options)
  return data.getvalue()


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  """A prepared data set; writing one needs no TensorFlow either."""
  import tensorflow_datasets as tfds

  class TinyShapes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(), "file_name": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["round", "square"])}))

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(40), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
      for i in range(count):
        data = encoded(Image.new("RGB", (6, 8), (i, 0, 0)), format="PNG")
        data = b"broken" if i == 3 else data
        yield i, {"image": io.BytesIO(data), "label": i % 2, "file_name": f"{i}.png"}

  root = tmp_path_factory.mktemp("tfds")
  TinyShapes(data_dir=root, file_format="array_record").download_and_prepare()
  return root


def test_tfds(tfds_folder, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
  sizes = {split: len(open_source("tfds:tiny_shapes", split))
           for split in ("train", "val", "test", "all")}
  assert sizes == {"train": 38, "val": 2, "test": 4, "all": 44}
  source = pickle.loads(pickle.dumps(open_source("tfds:tiny_shapes:1.0.0", "test")))
  assert source.classes == ["round", "square"] and source.labels is None
  assert source.own_splits == {"train", "test"}
  damaged = 0
  for i in range(len(source)):
    try:
      item = source[i]
    except DamagedImage as error:
      damaged += 1
      assert error.name == "3.png"
      continue
    number = int(item["name"].removesuffix(".png"))
    assert item["label"] == number % 2
    np.testing.assert_array_equal(item["image"], np.full((8, 6, 3), (number, 0, 0)))
  assert damaged == 1


def test_a_set_is_evaluated(tfds_folder, monkeypatch):
  """Its test set is read, and its train set whole; a broken image keeps its label."""
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
  train, test, classes, notes = splits_of_source("tfds:tiny_shapes")
  assert classes == ["round", "square"] and not notes
  assert len(train[0]) == 40 and len(test[0]) == 4
  for image, label in zip(train[0] + test[0], [*train[1], *test[1]]):
    assert label == int(image.split("/")[-1].removesuffix(".png")) % 2


def test_a_set_that_is_prepared_again_has_another_mark(tfds_folder, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
  marks = lambda: [open_source("tfds:tiny_shapes", split).mark(0) for split in ("train", "test")]
  before = marks()
  assert before[0] is not None and marks() == before
  next(tfds_folder.rglob("*test.array_record*")).touch()
  assert marks() != before


@pytest.mark.parametrize("name, message", [
  ("no_such_set", "cannot be opened"), ("tiny_shapes:9.0.0", "cannot be opened"),
  ("mnist", "is not prepared in .*tfds build mnist")])
def test_tfds_errors(tfds_folder, monkeypatch, name, message):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_folder))
  with pytest.raises(ValueError, match=f"tfds:{name} {message}") as error:
    open_source(f"tfds:{name}", "train")
  assert "\n" not in str(error.value)
