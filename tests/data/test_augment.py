"""Colour operations against Pillow's, which torchvision uses, and how often each is applied."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from dinov3_jax.data import augment


@pytest.fixture(scope="module")
def image():
  rng = np.random.default_rng(0)
  coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
  return np.asarray(coarse.resize((40, 48), Image.Resampling.BICUBIC))


def assert_within_a_level(ours, theirs):
  assert ours.dtype == np.uint8
  difference = np.abs(ours.astype(int) - np.asarray(theirs).astype(int))
  assert difference.max() <= 1


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("ours, theirs", [
  (augment.adjust_brightness, ImageEnhance.Brightness),
  (augment.adjust_contrast, ImageEnhance.Contrast),
  (augment.adjust_saturation, ImageEnhance.Color),
])
def test_enhancements_are_pillows(image, ours, theirs, factor):
  assert_within_a_level(ours(image, factor), theirs(Image.fromarray(image)).enhance(factor))


def test_grayscale_and_solarize_are_pillows(image):
  picture = Image.fromarray(image)
  assert_within_a_level(augment.grayscale(image), picture.convert("L").convert("RGB"))
  np.testing.assert_array_equal(augment.solarize(image), ImageOps.solarize(picture, 128))


@pytest.mark.parametrize("turn", [-0.1, 0.0, 0.02, 0.1, 1 / 3])
def test_hue_turns_the_color_circle(image, turn):
  expected = np.empty(image.shape)
  for spot in np.ndindex(image.shape[:2]):
    hue, saturation, value = colorsys.rgb_to_hsv(*image[spot] / 255)
    expected[spot] = 255 * np.array(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
  error = np.abs(augment.adjust_hue(image, turn) - expected)
  # One of the 256 hues is six levels of a channel; Pillow's mean error is 0.8 here.
  assert error.mean() < 0.8 and error.max() < 12


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_the_normalised_nine_tap_gaussian(image, sigma):
  taps = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
  taps /= taps.sum()
  padded = np.pad(image.astype(float), ((4, 4), (4, 4), (0, 0)), mode="reflect")
  rows = sum(tap * padded[i : i + image.shape[0]] for i, tap in enumerate(taps))
  expected = sum(tap * rows[:, i : i + image.shape[1]] for i, tap in enumerate(taps))
  assert np.abs(augment.gaussian_blur(image, sigma) - expected).max() < 0.501


def test_jitter_order_is_random():
  image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)

  class Fixed:
    def __init__(self, order):
      self.order = order

    def uniform(self, low, high, size):
      return np.full(size, 0.9)

    def permutation(self, count):
      return np.array(self.order)

  one = augment.color_jitter(image, Fixed([0, 1, 2, 3]))
  other = augment.color_jitter(image, Fixed([3, 2, 1, 0]))
  assert (one != other).any()


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_amounts_of_jitter_cover_their_ranges(monkeypatch, strength):
  seen = {}
  for name in ("brightness", "contrast", "saturation", "hue"):
    monkeypatch.setattr(augment, f"adjust_{name}",
                        lambda image, x, name=name: seen.setdefault(name, []).append(x) or image)
  rng = np.random.default_rng(0)
  for _ in range(400):
    augment.color_jitter(np.zeros((1, 1, 3), np.uint8), rng, strength)
  expected = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2),
              "hue": (-0.1, 0.1)}
  for name, (low, high) in expected.items():
    middle = (low + high) / 2
    low, high = (middle + strength * (end - middle) for end in (low, high))
    assert low <= min(seen[name]) < low + 0.02 * (high - low) * 2
    assert high - 0.04 * (high - low) < max(seen[name]) <= high


def shares(monkeypatch, run, count=2000):
  """How often each operation is called in `count` runs."""
  calls = dict.fromkeys(("color_jitter", "grayscale", "gaussian_blur", "solarize"), 0)
  for name in calls:
    def counted(image, *args, name=name):
      calls[name] += 1
      return image
    monkeypatch.setattr(augment, name, counted)
  rng = np.random.default_rng(0)
  for _ in range(count):
    run(np.zeros((1, 1, 3), np.uint8), rng)
  return {name: calls[name] / count for name in calls}


@pytest.mark.parametrize("strength", [1.0, 0.25, 0.0])
def test_probabilities_of_color(monkeypatch, strength):
  found = shares(monkeypatch, lambda image, rng: augment.distort_color(image, rng, strength))
  assert found["color_jitter"] == pytest.approx(0.8, abs=0.03)
  assert found["grayscale"] == pytest.approx(0.2 * strength, abs=0.03 * strength)


@pytest.mark.parametrize("blur, solarized", [(0.0, 0.0), (0.9, 0.2), (0.5, 0.0)])
def test_probabilities_of_tone(monkeypatch, blur, solarized):
  found = shares(monkeypatch,
                 lambda image, rng: augment.distort_tone(image, rng, blur, solarized))
  assert found["gaussian_blur"] == pytest.approx(blur, abs=0.03 if blur else 0)
  assert found["solarize"] == pytest.approx(solarized, abs=0.03 if solarized else 0)
