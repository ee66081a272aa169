"""Photometric augmentation of uint8 RGB crops, with the probabilities the reference really applies.

Each function takes and returns uint8 [H, W, 3] and follows torchvision's operation of that name on
PIL images to within one level (hue: to a step of its 8-bit circle). The generator passed in is the
only source of randomness.
"""

from typing import NamedTuple

import cv2
import numpy as np

# Images are spread over workers; OpenCV's own threads would only compete with them.
cv2.setNumThreads(0)

# Where its paper says 100 / 10 / 50 %, the reference blurs with the complement, and every released
# checkpoint was trained so: never the first global crop, the second at 90 %, locals at 50 %.
BLUR_GLOBAL = (0.0, 0.9)
BLUR_LOCAL = 0.5
SOLARIZE_GLOBAL = (0.0, 0.2)
JITTER = 0.8
GRAYSCALE = 0.2
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
CENTERS = np.array([1.0, 1.0, 1.0, 0.0])  # amounts that change nothing
SPREADS = np.array([BRIGHTNESS, CONTRAST, SATURATION, HUE])
DRAWN = 2 * len(CENTERS) + 3  # numbers that say what is done to a crop; see `as_row`
BLUR_KERNEL, BLUR_SIGMA = 9, (0.1, 2.0)
SOLARIZE_THRESHOLD = 128


def _gray(image: np.ndarray) -> np.ndarray:
  return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
  """Blends with black: 0 is black, 1 the image."""
  return cv2.convertScaleAbs(image, alpha=factor)


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
  """Blends with the mean grey level of the image, itself rounded to a level."""
  level = int(cv2.mean(_gray(image))[0] + 0.5)
  return cv2.addWeighted(image, factor, image, 0.0, level * (1.0 - factor))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
  """Blends with the grey image."""
  gray = cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB)
  return cv2.addWeighted(image, factor, gray, 1.0 - factor, 0.0)


def adjust_hue(image: np.ndarray, turn: float) -> np.ndarray:
  """Rotates the hue by `turn` of the full circle."""
  hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
  rows = hsv.reshape(len(hsv), -1)  # whole rows at once, for NumPy is slow over one channel
  turned = np.zeros(rows.shape[1], np.uint8)
  turned[::3] = round(turn * 256) % 256
  rows += turned
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def draw_jitter(rng: np.random.Generator, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
  """The order of brightness (0), contrast (1), saturation (2) and hue (3), and their amounts."""
  amounts = strength * rng.uniform(-1.0, 1.0, len(CENTERS))
  return rng.permutation(len(CENTERS)), CENTERS + SPREADS * amounts


def color_jitter(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
  """Brightness, contrast, saturation and hue by random amounts, in random order."""
  ops = adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue
  order, amounts = draw_jitter(rng, strength)
  for i in order:
    image = ops[i](image, amounts[i])
  return image


def grayscale(image: np.ndarray) -> np.ndarray:
  """The grey image in three equal channels."""
  return cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
  """9 x 9 Gaussian of standard deviation `sigma` pixels, reflected at the border."""
  kernel = cv2.getGaussianKernel(BLUR_KERNEL, sigma, cv2.CV_32F)
  # cv2.GaussianBlur rounds in fixed point and takes two to four times as long.
  return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)


def solarize(image: np.ndarray) -> np.ndarray:
  """Inverts every value from 128 up, which are those that are greater than their inverse."""
  return np.minimum(image, ~image)


class Color(NamedTuple):
  """What is drawn for the colours of a crop: the jitter's order and amounts, as of `draw_jitter`
  (None: no jitter), and whether it becomes grey."""

  order: np.ndarray | None
  amounts: np.ndarray | None
  gray: bool


class Tone(NamedTuple):
  """What is drawn for the rest: the blur's sigma, 0 for none, and whether it is solarized."""

  sigma: float
  solarized: bool


def draw_color(rng: np.random.Generator, strength: float = 1.0) -> Color:
  """Draws colour jitter (80 %) and greyscale (20 %), as `distort_color` does."""
  jitter, gray = rng.random(2).tolist()
  order, amounts = draw_jitter(rng, strength) if jitter < JITTER else (None, None)
  return Color(order, amounts, gray < strength * GRAYSCALE)


def draw_tone(rng: np.random.Generator, blur: float, solarized: float = 0.0) -> Tone:
  """Draws blur with probability `blur`, and solarization with its own, as `distort_tone` does."""
  draw, sigma, invert = rng.random(3).tolist()
  low, high = BLUR_SIGMA
  return Tone(low + (high - low) * sigma if draw < blur else 0.0, invert < solarized)


def as_row(color: Color, tone: Tone) -> np.ndarray:
  """What was drawn, float32 [DRAWN]: the order (`len(CENTERS)` where there is no jitter), the
  amounts, whether it becomes grey, sigma, whether it is solarized."""
  count = len(CENTERS)
  row = np.empty(DRAWN, np.float32)
  row[:count] = count if color.order is None else color.order
  row[count : 2 * count] = CENTERS if color.order is None else color.amounts
  row[2 * count], row[2 * count + 1], row[2 * count + 2] = color.gray, *tone
  return row


def distort_color(image: np.ndarray, rng: np.random.Generator,
                  strength: float = 1.0) -> np.ndarray:
  """Colour jitter (80 %), then greyscale (20 %).

  `strength` multiplies the amounts of the first and the probability of the second.
  """
  jitter, gray = rng.random(2).tolist()
  if jitter < JITTER:
    image = color_jitter(image, rng, strength)
  return grayscale(image) if gray < strength * GRAYSCALE else image


def distort_tone(image: np.ndarray, rng: np.random.Generator, blur: float,
                 solarized: float = 0.0) -> np.ndarray:
  """Blur with probability `blur`, sigma in U(0.1, 2), then solarization with its probability."""
  sigma, inverted = draw_tone(rng, blur, solarized)
  if sigma:
    image = gaussian_blur(image, sigma)
  return solarize(image) if inverted else image
