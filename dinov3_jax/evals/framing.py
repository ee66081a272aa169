"""How the images of an evaluation come to one size."""

import dataclasses
import os

import numpy as np
from PIL import Image

from dinov3_jax.data.crops import center_crop, resize
from dinov3_jax.data.decode import decode
from dinov3_jax.data.preprocess import Preprocess

RULES = ("crop", "pad")


@dataclasses.dataclass(frozen=True)
class Framing:
  """Brings images to a square and normalises them; it stands in for a `Preprocess`.

  Attributes:
    mean, std: of RGB in [0, 1].
    size: side of the square, pixels.
    rule: "crop" resizes the shorter side (bicubic) and cuts out the middle; "pad" resizes the
      longer one and fills up with zeros around, after the normalisation.
    shorter: what "crop" resizes the shorter side to; None: `size`.
    border: pixels that are cut off on every side first.
  """

  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  size: int
  rule: str = "crop"
  shorter: int | None = None
  border: int = 0

  def __post_init__(self):
    if self.rule not in RULES:
      raise ValueError(f"the rule must be {' or '.join(RULES)}, not {self.rule!r}")

  def __call__(self, image: str | os.PathLike | np.ndarray) -> np.ndarray:
    """float32 [size, size, 3] of a file or of uint8 [H, W, 3].

    Raises:
      DamagedImage: the file is no image.
    """
    if isinstance(image, str | os.PathLike):
      image = decode(image, image)
    if self.border:
      image = image[self.border:-self.border, self.border:-self.border]
    if self.rule == "crop":
      return normalize(center_crop(image, self.size, self.shorter), self.mean, self.std)
    most = max(image.shape[:2])
    height, width = (max(round(side * self.size / most), 1) for side in image.shape[:2])
    result = np.zeros((self.size, self.size, 3), np.float32)
    top, left = (self.size - height) // 2, (self.size - width) // 2
    result[top:top + height, left:left + width] = normalize(
        resize(image, height, width), self.mean, self.std)
    return result


def framing(prepare: Preprocess, size: int, rule: str = "crop", shorter: int | None = None
            ) -> Framing:
  """The framing for the model that `prepare` belongs to."""
  return Framing(tuple(prepare.mean), tuple(prepare.std), size, rule, shorter)


def normalize(image: np.ndarray, mean, std) -> np.ndarray:
  """float32 of uint8 [..., 3]."""
  x = np.asarray(image, np.float32) / 255
  return (x - np.float32(mean)) / np.float32(std)


def read_labels(path: str | os.PathLike) -> np.ndarray:
  """The classes of a label file as they are stored: palette indices or grey values, uint8 [H, W].

  Raises:
    ValueError: a file whose colours are not indices, or none that can be read.
  """
  try:
    with Image.open(path) as image:
      if image.mode not in ("P", "L"):
        raise ValueError(f"{path} has the mode {image.mode}: a label file holds palette indices or "
                         "grey values of 8 bits (P or L); was it converted to colours?")
      return np.asarray(image)
  except OSError as error:
    raise ValueError(f"{path} cannot be read as a label file: {error}") from error


def read_alpha(path: str | os.PathLike) -> np.ndarray:
  """How much of each pixel is covered, uint8 [H, W]: the alpha of an image, or its grey value.

  Raises:
    ValueError: an image in colours without alpha, or none that can be read.
  """
  try:
    with Image.open(path) as image:
      if image.mode in ("RGBA", "LA", "PA"):
        return np.asarray(image.getchannel("A"))
      if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))
      raise ValueError(f"{path} has the mode {image.mode}: wanted is an alpha channel, or grey "
                       "values")
  except OSError as error:
    raise ValueError(f"{path} cannot be read as a mask: {error}") from error
