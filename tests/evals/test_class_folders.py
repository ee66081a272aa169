"""Folders of classes."""

import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.decode import decode
from dinov3_jax.evals import class_folders as folders
from dinov3_jax.evals.class_folders import images_of_source
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
