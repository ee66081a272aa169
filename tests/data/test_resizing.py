"""The fast resizer is the exact one to less than a level, or the exact one."""

import logging

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data import resizing
from dinov3_jax.data.crops import MultiCrop


def picture(height=150, width=200):
  rng = np.random.default_rng(0)
  return np.asarray(Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize(
    (width, height), Image.BICUBIC))


@pytest.mark.parametrize("shape", [(48, 48), (224, 96), (40, 190)])
def test_fast_is_alike(shape):
  pytest.importorskip("cykooz_resizer")
  exact, fast = (resizing.resize(picture(), *shape, how).astype(int) for how in ("exact", "fast"))
  difference = np.abs(exact - fast)
  assert fast.shape == (*shape, 3)
  assert difference.mean() < 0.2 and 10 * np.log10(255**2 / (difference**2).mean()) > 55


@pytest.mark.parametrize("how", ["exact", "fast"])
def test_a_part_between_pixels(how):
  if how == "fast":
    pytest.importorskip("cykooz_resizer")
  image = picture()
  whole = resizing.resize_part(image, (20.0, 10.0, 120.0, 110.0), 50, 50, how).astype(int)
  assert np.abs(whole - resizing.resize(image[10:110, 20:120], 50, 50)).mean() < 0.2
  # A ramp tells where a part begins, to a fraction of a pixel.
  ramp = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 60, 0).repeat(3, 2)
  part = resizing.resize_part(ramp, (30.4, 5.5, 130.4, 55.5), 50, 100, how)
  np.testing.assert_allclose(part[25, 5:-5, 0], 30.4 + np.arange(5, 95), atol=0.61)
  assert resizing.resize_part(image, (0.0, 0.0, 200.0, 150.0), 32, 32, how).shape == (32, 32, 3)


def test_draws_are_the_same():
  pytest.importorskip("cykooz_resizer")
  exact, fast = (MultiCrop(32, 16, resizer=how, color_strength=0.0)(
    picture(), np.random.default_rng(0)) for how in ("exact", "fast"))
  for name in exact:
    assert np.abs(exact[name].astype(int) - fast[name]).mean() < 0.3


def test_without_the_package_it_is_exact_and_said_once(monkeypatch, caplog):
  monkeypatch.setattr(resizing, "cykooz_resizer", None)
  monkeypatch.setattr(resizing, "_told", [])
  caplog.set_level(logging.WARNING)
  for _ in range(2):
    np.testing.assert_array_equal(resizing.resize(picture(), 32, 32, "fast"),
                                  resizing.resize(picture(), 32, 32))
  assert caplog.text.count("cykooz-resizer is not installed") == 1
