"""Pictures in files."""

import numpy as np
from PIL import Image

from dinov3_jax.evals import drawing


def test_overlay_leaves_the_background():
  image = np.full((4, 4, 3), 100, np.uint8)
  labels = np.zeros((4, 4), int)
  labels[0] = 1
  result = drawing.overlay(image, labels)
  assert (result[1:] == 100).all() and (result[0] != 100).any() and result.dtype == np.uint8


def test_files(tmp_path):
  canvas = np.random.default_rng(0).integers(0, 255, (5, 6, 3), np.uint8)
  drawing.write(tmp_path / "a" / "one.png", canvas)
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a" / "one.png")), canvas)
  drawing.write(tmp_path / "b" / "film.gif", [canvas, 255 - canvas, canvas])
  with Image.open(tmp_path / "b" / "film.gif") as film:
    assert film.n_frames == 3 and film.size == (6, 5)
