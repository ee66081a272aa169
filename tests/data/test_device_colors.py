"""Colours on the device: each operation, whole crops and their statistics against the host's."""

import jax
import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data import augment, device_colors
from dinov3_jax.data.augment import Color, Tone
from dinov3_jax.data.crops import MultiCrop


@pytest.fixture(scope="module")
def crops():
  """Smooth pictures and noise, uint8 [12, 24, 24, 3]."""
  rng = np.random.default_rng(0)
  smooth = [np.asarray(Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(
    (24, 24), Image.BICUBIC)) for _ in range(8)]
  return np.stack([*smooth, *rng.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)])


@pytest.mark.parametrize("name, amounts", [
  ("brightness", (0.6, 1.13, 1.4)), ("contrast", (0.6, 1.17, 1.4)),
  ("saturation", (0.8, 1.1, 1.2)), ("hue", (-0.1, 0.033, 0.1))])
def test_each_operation_is_within_a_level(crops, name, amounts):
  number = ("brightness", "contrast", "saturation", "hue").index(name)
  for amount in amounts:
    host = np.stack([getattr(augment, f"adjust_{name}")(crop, amount) for crop in crops])
    values = np.array(augment.CENTERS)
    values[number] = amount
    row = augment.as_row(Color(np.array([number, 4, 4, 4]), values, False), Tone(0.0, False))
    device = np.asarray(device_colors.distort(crops, np.stack([row] * len(crops))))
    assert np.abs(device.astype(int) - host).max() <= 1


@pytest.mark.parametrize("color, tone", [
  (Color(None, None, True), Tone(0.0, False)), (Color(None, None, False), Tone(0.1, False)),
  (Color(None, None, False), Tone(1.3, False)), (Color(None, None, False), Tone(0.0, True)),
  (Color(None, None, False), Tone(0.0, False))])
def test_grey_blur_solarization_and_nothing(crops, color, tone):
  host = crops
  if color.gray:
    host = np.stack([augment.grayscale(crop) for crop in host])
  if tone.sigma:
    host = np.stack([augment.gaussian_blur(crop, tone.sigma) for crop in host])
  if tone.solarized:
    host = np.stack([augment.solarize(crop) for crop in host])
  rows = np.stack([augment.as_row(color, tone)] * len(crops))
  device = np.asarray(device_colors.distort(crops, rows))
  assert np.abs(device.astype(int) - host).max() <= (1 if tone.sigma else 0)


@pytest.fixture(scope="module")
def both():
  """Batches of the two paths from the same images and draws."""
  rng, pictures = np.random.default_rng(1), []
  for _ in range(40):
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pictures.append(np.asarray(coarse.resize((64, 48), Image.BICUBIC)))
  made = {}
  for colors in ("host", "device"):
    crop = MultiCrop(32, 16, locals=3, patch_size=8, colors=colors)
    views = [crop(image, np.random.default_rng(i)) for i, image in enumerate(pictures)]
    made[colors] = {name: np.stack([view[name] for view in views]) for name in views[0]}
  assert made["device"]["colors"].shape == (40, 5, augment.DRAWN)
  made["device"] = jax.device_get(device_colors.distort_batch(made["device"]))
  return made


def test_crops_of_the_same_draws_are_alike(both):
  host, device = both["host"], both["device"]
  assert set(host) == set(device)
  for name in host:
    assert device[name].dtype == np.uint8 and device[name].shape == host[name].shape
    difference = np.abs(device[name].astype(int) - host[name])
    assert difference.mean() < 0.1  # rounding, of which solarization makes jumps
    assert (difference > 4).mean() < 0.002


def test_statistics_are_alike(both):
  for name in both["host"]:
    host, device = (both[key][name].astype(float) for key in ("host", "device"))
    for statistic in (np.mean, np.std):
      ours, theirs = (statistic(x, axis=(0, 1, 2, 3)) for x in (device, host))
      np.testing.assert_allclose(ours, theirs, atol=0.1)


def test_draws_are_those_of_the_host():
  one, other = np.random.default_rng(3), np.random.default_rng(3)
  image = np.zeros((4, 4, 3), np.uint8)
  for _ in range(50):
    augment.distort_color(image, one)
    augment.distort_tone(image, one, 0.5, 0.2)
    augment.draw_color(other)
    augment.draw_tone(other, 0.5, 0.2)
  assert one.random() == other.random()


def test_a_batch_without_draws_is_left_alone():
  batch = {"global_crops": np.zeros((1, 2, 4, 4, 3), np.uint8)}
  assert device_colors.distort_batch(batch) is batch


@pytest.mark.parametrize("options, name", [
  (dict(share_color_jitter=True), "share_color_jitter"),
  (dict(locals_from_globals=True), "locals_from_globals"),
  (dict(gram_size=64), "gram_distortions")])
def test_what_cannot_be_left_to_the_device(options, name):
  with pytest.raises(ValueError, match=f"colors=device does not go with {name}.*take colors=host"):
    MultiCrop(32, 16, colors="device", **options)
  MultiCrop(32, 16, colors="device", gram_size=64, gram_distortions=False)
