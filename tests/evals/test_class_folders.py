"""Folders of classes."""

import shutil

import numpy as np
import pytest

from dinov3_jax.evals import class_folders as folders
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


def test_other_folders_are_refused_or_left_out(mini_data):
  with pytest.raises(LayoutError, match="has a class boxes that the training set does not have"):
    folders.images_of(mini_data / "folders/val", ["discs", "crosses"])
  images, labels = folders.images_of(mini_data / "folders/val", ["discs", "crosses"], others=True)
  assert len(images) == 8 and set(labels) == {0, 1}
