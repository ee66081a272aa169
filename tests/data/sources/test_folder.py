"""A folder: its classes, names, order and splits."""

import pickle

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.sources import open_source
from dinov3_jax.data.sources.splits import hash_percent


def save(path, color=(10, 200, 30), size=(12, 9), **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, color).save(path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("images")
  for i in range(30):
    for kind, suffix in (("cat", "jpg"), ("dog", "PNG"), ("deep/er", "webp")):
      save(root / kind / f"{i:02}.{suffix}", color=(8 * i, 100, 100))
  save(root / "loose.jpeg")
  save(root / ".hidden" / "a.png")
  save(root / "cat" / "._b.png")
  (root / "cat" / "notes.txt").write_text("no image")
  return root


def test_folder_has_labels_names_and_order(folder):
  source = open_source(str(folder), "all")
  assert len(source) == 91 and source.classes == ["cat", "deep", "dog"]
  names = [source[i]["name"] for i in range(len(source))]
  assert names == sorted(names) and names[0] == "cat/00.jpg" and names[-1] == "loose.jpeg"
  item = source[31]
  assert item["name"] == "deep/er/01.webp" and item["label"] == 1
  assert item["image"].shape == (9, 12, 3) and item["image"].dtype == np.uint8
  assert np.abs(item["image"][0, 0].astype(int) - (8, 100, 100)).max() < 6
  assert source.labels.tolist() == [source[i]["label"] for i in range(len(source))]
  assert source[90]["label"] == -1
  assert pickle.loads(pickle.dumps(source))[5]["name"] == names[5]


def test_held_out_images_depend_on_their_path_alone(folder):
  splits = {split: open_source(folder, split) for split in ("train", "val", "test")}
  names = {split: {source[i]["name"] for i in range(len(source))}
           for split, source in splits.items()}
  assert sum(map(len, names.values())) == 91 == len(set.union(*names.values()))
  assert all(len(part) > 0 for part in names.values())
  for name in names["val"]:
    assert hash_percent(name) < 5
  assert all(source.classes == ["cat", "deep", "dog"] for source in splits.values())


def test_split_folders(tmp_path):
  for i in range(60):
    save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
  save(tmp_path / "extra" / "x.png")
  train, val = (open_source(tmp_path, split) for split in ("train", "val"))
  assert len(train) + len(val) == 60 and 0 < len(val) < 12
  assert train.classes == val.classes == ["a", "b"]

  save(tmp_path / "val" / "b" / "0.png")
  save(tmp_path / "val" / "c" / "0.png")
  train, val = (open_source(tmp_path, split) for split in ("train", "val"))
  assert (len(train), len(val)) == (60, 2)
  assert train.classes == val.classes == ["a", "b", "c"] and val.labels.tolist() == [1, 2]
  assert len(open_source(tmp_path, "all")) == 62
  with pytest.raises(ValueError, match=r"'test'.*has the splits train, val"):
    open_source(tmp_path, "test")


def test_folder_without_classes(tmp_path):
  save(tmp_path / "one.png")
  source = open_source(tmp_path, "all")
  assert source.labels is None and source.classes is None and source[0]["label"] == -1
