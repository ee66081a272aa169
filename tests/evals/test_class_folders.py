"""Folders of classes."""

import shutil

import numpy as np

from dinov3_jax.evals import class_folders as folders


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
