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
