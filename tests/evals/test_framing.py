"""How images come to one size, and what label files hold."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.evals import framing


def test_the_middle_is_cut_out():
  image = np.zeros((40, 80, 3), np.uint8)
  image[:, 20:60] = 255
  x = framing.Framing((0, 0, 0), (1, 1, 1), 16)(image)
  assert x.shape == (16, 16, 3)
  assert x[:, 1:-1].min() > 0.99 and x.min() > 0.9  # the kernel reaches beyond the middle
  wide = framing.Framing((0, 0, 0), (1, 1, 1), 16, shorter=32)(image)
  assert wide.min() > 0.99


def test_padding_is_zero_after_the_normalisation(tmp_path):
  Image.new("RGB", (80, 40), "white").save(tmp_path / "wide.png")
  look = framing.framing(Preprocess(), 16, "pad")
  x = look(tmp_path / "wide.png")
  assert x.shape == (16, 16, 3) and not x[:4].any() and not x[12:].any()
  np.testing.assert_allclose(x[4:12], framing.normalize(
      np.full((8, 16, 3), 255, np.uint8), look.mean, look.std), atol=1e-5)


def test_labels_are_indices_not_colours(tmp_path):
  labels = np.array([[0, 1], [2, 255]], np.uint8)
  picture = Image.fromarray(labels, "L").convert("P")
  picture.putdata(labels.ravel())
  picture.putpalette([200, 100, 50] * 256)
  picture.save(tmp_path / "palette.png")
  np.testing.assert_array_equal(framing.read_labels(tmp_path / "palette.png"), labels)
  Image.fromarray(labels).save(tmp_path / "grey.png")
  np.testing.assert_array_equal(framing.read_labels(tmp_path / "grey.png"), labels)
  picture.convert("RGB").save(tmp_path / "colours.png")
  with pytest.raises(ValueError, match="the mode RGB: a label file holds palette indices"):
    framing.read_labels(tmp_path / "colours.png")
  (tmp_path / "none.png").write_text("no image")
  with pytest.raises(ValueError, match="cannot be read as a label file"):
    framing.read_labels(tmp_path / "none.png")


def test_an_unknown_rule():
  with pytest.raises(ValueError, match="crop or pad, not 'fit'"):
    framing.Framing((0, 0, 0), (1, 1, 1), 16, "fit")


def test_a_border_is_cut_off():
  image = np.full((18, 26, 3), 255, np.uint8)
  image[1:-1, 1:-1] = np.random.default_rng(0).integers(0, 255, (16, 24, 3))
  look = framing.Framing((0.5,) * 3, (0.5,) * 3, 16)
  np.testing.assert_array_equal(dataclasses.replace(look, border=1)(image), look(image[1:-1, 1:-1]))


def test_alpha_or_grey_values_are_a_mask(tmp_path):
  alpha = np.random.default_rng(0).integers(0, 255, (4, 6), np.uint8)
  image = np.dstack([np.zeros((4, 6, 3), np.uint8), alpha])
  for name, array in (("rgba", image), ("grey", alpha)):
    Image.fromarray(array).save(tmp_path / f"{name}.png")
    np.testing.assert_array_equal(framing.read_alpha(tmp_path / f"{name}.png"), alpha)
  Image.fromarray(image[..., :3]).save(tmp_path / "rgb.png")
  with pytest.raises(ValueError, match="mode RGB: wanted is an alpha channel"):
    framing.read_alpha(tmp_path / "rgb.png")
  (tmp_path / "no.png").write_text("no image")
  with pytest.raises(ValueError, match="cannot be read as a mask"):
    framing.read_alpha(tmp_path / "no.png")
