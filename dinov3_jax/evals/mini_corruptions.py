"""The nineteen corruptions of ImageNet-C at five levels, for small images.

They have the names and the kinds of those of Hendrycks and Dietterich (ICLR 2019), with strengths
for images of about 64 pixels: enough to run a protocol, not to compare with published figures.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def corrupt(image: np.ndarray, name: str, level: int, rng: np.random.Generator) -> np.ndarray:
  """An image uint8 [H, W, 3] under a corruption of `CORRUPTIONS`.

  Args:
    level: 1 to 5, the strongest.

  Raises:
    ValueError: another level.
  """
  if level not in range(1, 6):
    raise ValueError(f"the levels of a corruption are 1 to 5, not {level}")
  found = CORRUPTIONS[name](image / 255, level, rng)
  return np.round(255 * np.clip(found, 0, 1)).astype(np.uint8)


def _blotches(shape, rng: np.random.Generator, cells: int = 6) -> np.ndarray:
  """Smooth noise from 0 to 1, [H, W, 1]."""
  noise = Image.fromarray(rng.integers(0, 255, (cells, cells), np.uint8)).resize(
      shape[1::-1], Image.Resampling.BICUBIC)
  return np.asarray(noise)[..., None] / 255


def _shot(x, level, rng):
  photons = 50 / 2.0**level
  return rng.poisson(x * photons) / photons


def _impulse(x, level, rng):
  struck = rng.random(x.shape[:2]) < 0.05 * level
  return np.where(struck[..., None], rng.integers(0, 2, (*x.shape[:2], 1)), x)


def _defocus(x, level, rng):
  side = np.arange(-level, level + 1)
  disk = (np.hypot(side, side[:, None]) <= level).astype(float)
  return ndimage.convolve(x, (disk / disk.sum())[..., None], mode="nearest")


def _glass(x, level, rng):
  moved = [np.clip(places + rng.integers(-level, level + 1, x.shape[:2]), 0, side - 1)
           for places, side in zip(np.indices(x.shape[:2]), x.shape)]
  return ndimage.gaussian_filter(x[tuple(moved)], (0.5, 0.5, 0))


def _zoom(x, level, rng):
  rows, columns = np.indices(x.shape[:2])
  total = np.zeros_like(x)
  for factor in (factors := np.linspace(1, 1 + 0.08 * level, 8)):
    y, z = ((places - side / 2) / factor + side / 2
            for places, side in ((rows, x.shape[0]), (columns, x.shape[1])))
    total += x[y.astype(int), z.astype(int)]
  return total / len(factors)


def _snow(x, level, rng):
  flakes = ndimage.uniform_filter1d(1.0 * (rng.random(x.shape[:2]) < 0.03 * level), 5, axis=0)
  return x * (1 - 0.06 * level) + 0.06 * level + 3 * flakes[..., None]


def _frost(x, level, rng):
  ice = _blotches(x.shape, rng, 12) > 1 - 0.12 * level
  return np.where(ice, 0.35 * x + 0.6, x)


def _fog(x, level, rng):
  share = 0.14 * level * (0.5 + 0.5 * _blotches(x.shape, rng))
  return x * (1 - share) + share


def _elastic(x, level, rng):
  rows, columns = (places + 6 * level * ndimage.gaussian_filter(
      rng.uniform(-1, 1, x.shape[:2]), 4) for places in np.indices(x.shape[:2]))
  return np.stack([ndimage.map_coordinates(channel, (rows, columns), order=1, mode="nearest")
                   for channel in np.moveaxis(x, -1, 0)], -1)


def _through(x, how: Callable[[Image.Image], Image.Image]) -> np.ndarray:
  """What becomes of the picture of an image."""
  return np.asarray(how(Image.fromarray(np.round(255 * x).astype(np.uint8)))) / 255


def _pixelate(x, level, rng):
  small = [max(side // (level + 1), 1) for side in x.shape[1::-1]]
  return _through(x, lambda image: image.resize(small, Image.Resampling.BOX).resize(
      image.size, Image.Resampling.NEAREST))


def _jpeg(x, level, rng):
  def squeezed(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=(25, 18, 12, 8, 4)[level - 1])
    return Image.open(file)

  return _through(x, squeezed)


def _spatter(x, level, rng):
  mud = ndimage.gaussian_filter(rng.normal(size=x.shape[:2]), 2)[..., None]
  return np.where(mud > np.quantile(mud, 1 - 0.07 * level), np.array([0.25, 0.18, 0.12]), x)


def _saturate(x, level, rng):
  grey = x.mean(-1, keepdims=True)
  return grey + (x - grey) * (1 + 0.8 * level)


CORRUPTIONS: dict[str, Corruption] = {
  "gaussian_noise": lambda x, level, rng: x + rng.normal(0, 0.06 * level, x.shape),
  "shot_noise": _shot, "impulse_noise": _impulse, "defocus_blur": _defocus, "glass_blur": _glass,
  "motion_blur": lambda x, level, rng: ndimage.uniform_filter1d(x, 2 * level + 1, axis=1),
  "zoom_blur": _zoom, "snow": _snow, "frost": _frost, "fog": _fog,
  "brightness": lambda x, level, rng: x + 0.1 * level,
  "contrast": lambda x, level, rng: x.mean() + (x - x.mean()) * (0.6, 0.45, 0.3, 0.2, 0.1)[
    level - 1],
  "elastic_transform": _elastic, "pixelate": _pixelate, "jpeg_compression": _jpeg,
  "speckle_noise": lambda x, level, rng: x * (1 + rng.normal(0, 0.12 * level, x.shape)),
  "gaussian_blur": lambda x, level, rng: ndimage.gaussian_filter(x, (0.7 * level,) * 2 + (0,)),
  "spatter": _spatter, "saturate": _saturate}
