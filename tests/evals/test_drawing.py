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


def test_lines_from_points_to_their_matches():
  black = np.zeros((20, 30, 3), np.uint8)
  picture = drawing.matched(black, black, np.array([[5, 4], [5, 15]]), np.array([[5, 4], [5, 15]]),
                            [True, False])
  assert picture.shape == (20, 60, 3)
  np.testing.assert_array_equal(picture[4, 5:36], np.tile([0, 255, 0], (31, 1)))
  np.testing.assert_array_equal(picture[15, 5:36], np.tile([255, 0, 0], (31, 1)))
