"""Folders of classes."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.decode import DamagedImage, decode
from dinov3_jax.data.sources.subset import Subset
from dinov3_jax.evals import class_folders as folders
from dinov3_jax.evals.class_folders import images_of_source, splits_of_source
from dinov3_jax.evals.session import LayoutError


def test_numbers_are_sorted_as_numbers(tmp_path):
  for name in ("10", "2", "0"):
    (tmp_path / "numbers" / name).mkdir(parents=True)
    (tmp_path / "words" / f"n{name}").mkdir(parents=True)
  assert folders.classes_of(tmp_path / "numbers") == ["0", "2", "10"]
  assert folders.classes_of(tmp_path / "words") == ["n0", "n10", "n2"]


def test_a_missing_class_keeps_the_numbers_of_others(mini_data, tmp_path):
  shutil.copytree(mini_data / "folders" / "val" / "discs", tmp_path / "discs")
  _, labels = folders.images_of(tmp_path, folders.classes_of(mini_data / "folders" / "train"))
  np.testing.assert_array_equal(labels, 2)


def test_images_of_a_source(tmp_path, monkeypatch):
  monkeypatch.setenv("DINOV3_JAX_CACHE", str(tmp_path / "cache"))
  with tarfile.open(tmp_path / "x.tar", "w") as tar:
    for name in ("train/a/1.png", "train/b/2.png", "train/3.png", "val/b/4.png"):
      Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
      tar.add(tmp_path / "one.png", name)
  spec = str(tmp_path / "x.tar")
  images, labels, classes = images_of_source(spec, "train", None)
  assert images == [f"{spec}/train/a/1.png", f"{spec}/train/b/2.png"]
  assert labels.tolist() == [0, 1] and classes == ["a", "b"]
  assert images_of_source(spec, "val", classes)[1].tolist() == [1]
  with pytest.raises(LayoutError, match="no image for the split 'test'"):
    images_of_source(spec, "test", classes)
  with pytest.raises(LayoutError, match="has other classes in its split val"):
    images_of_source(spec, "val", ["a", "c"])


def write_tar(path, names):
  data = io.BytesIO()
  Image.new("RGB", (4, 4)).save(data, "PNG")
  with tarfile.open(path, "w") as tar:
    for name in names:
      member = tarfile.TarInfo(name)
      member.size = len(data.getvalue())
      tar.addfile(member, io.BytesIO(data.getvalue()))


def test_the_test_set_of_a_source(tmp_path, monkeypatch):
  """Its own val, or else its own test, and only without both what is held out of train."""
  monkeypatch.setenv("DINOV3_JAX_CACHE", str(tmp_path / "cache"))
  names = lambda count: [f"{'ab'[i % 2]}/{i:03}.png" for i in range(count)]

  def found(spec):
    train, test, classes, notes = splits_of_source(str(spec))
    assert classes == ["a", "b"] and all(len(one[0]) == len(one[1]) for one in (train, test))
    assert len(set(train[0])) == len(train[0]) and not set(train[0]) & set(test[0])
    return len(train[0]), len(test[0]), notes

  shards = tmp_path / "shards"
  shards.mkdir()
  write_tar(shards / "train-0000.tar", names(120))
  (note,) = found(shards)[2]
  assert sum(found(shards)[:2]) == 120 and "5 % of the images that are held out" in note
  write_tar(shards / "test-0000.tar", names(20))  # both have names of the other's
  assert found(shards) == (120, 20, [])
  write_tar(shards / "validation-0000.tar", names(30))
  assert found(shards) == (120, 30, [])
  write_tar(tmp_path / "x.tar", [f"{split}/{name}" for split in ("train", "test")
                                 for name in names(60 if split == "train" else 8)])
  assert found(tmp_path / "x.tar") == (60, 8, [])
  for name in ("y-0.tar", "y-1.tar"):  # whose names are the same, and so get the file's before them
    write_tar(tmp_path / name, [f"{split}/{name}" for split in ("train", "test")
                                for name in names(60 if split == "train" else 8)])
  assert found(tmp_path / "y-*.tar") == (120, 16, [])
  write_tar(tmp_path / "plain.tar", names(120))
  assert len(found(tmp_path / "plain.tar")[2]) == 1
  (tmp_path / "list.csv").write_text("path,label,split\n" + "".join(
    f"{name},{name[0]},{'test' if i < 10 else 'train'}\n" for i, name in enumerate(names(80))))
  assert found(f"manifest:{tmp_path / 'list.csv'}") == (70, 10, [])
  assert found(f"manifest:{tmp_path / 'list.csv'}::{tmp_path / 'plain.tar'}") == (70, 10, [])


def test_other_folders_are_refused_or_left_out(mini_data):
  with pytest.raises(LayoutError, match="has a class boxes that the training set does not have"):
    folders.images_of(mini_data / "folders/val", ["discs", "crosses"])
  images, labels = folders.images_of(mini_data / "folders/val", ["discs", "crosses"], others=True)
  assert len(images) == 8 and set(labels) == {0, 1}


def test_the_images_of_gtsrb_are_ppm(tmp_path):
  (tmp_path / "00000").mkdir()
  Image.fromarray(np.full((5, 4, 3), [9, 8, 7], np.uint8)).save(tmp_path / "00000/00000_00000.ppm")
  (tmp_path / "00000/GT-00000.csv").write_text("Filename;Width\n")
  (path,), labels = folders.images_of(tmp_path, ["00000"])
  assert path.endswith("00000_00000.ppm") and labels.tolist() == [0]
  assert (decode(path, path) == [9, 8, 7]).all()


class Records:
  """Images of which only reading them tells the labels."""

  classes, labels = ["a", "b"], None

  def __init__(self, values):
    self.values = values

  def __len__(self):
    return len(self.values)

  def name(self, index):
    return str(index)

  def label(self, index):
    if self.values[index] is None:
      raise DamagedImage(str(index), "it is cut")
    return self.values[index]


def test_labels_that_only_reading_tells(monkeypatch):
  sources = dict(train=Records([0, None, 1, -1]), val=Records([1]), all=Records([0]))
  monkeypatch.setattr(folders, "open_source", lambda _, split: sources[split])
  (images, labels), test, classes, notes = splits_of_source("tfds:x")
  assert images == ["tfds:x/0", "tfds:x/2"] and labels.tolist() == [0, 1]
  assert test[1].tolist() == [1] and classes == ["a", "b"] and not notes
  listed = Subset(sources["train"], np.array([2, 0]))
  assert folders.labels_of(listed).tolist() == [1, 0]
  sources["train"] = Records([-1, -1])
  with pytest.raises(LayoutError, match="has no labels for its split train"):
    splits_of_source("tfds:x")
