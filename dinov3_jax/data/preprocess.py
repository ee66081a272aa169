"""From a picture to what a released backbone expects of its input."""

import dataclasses
import json
import os
import pathlib
import re
from typing import Literal

import numpy as np
from PIL import Image

from dinov3_jax.data.crops import center_crop
from dinov3_jax.data.decode import decode

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of RGB in [0, 1]
SATELLITE = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))  # of the weights trained on SAT-493M


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """Resizes and normalises images; `preprocess` makes the one that fits some weights.

  Attributes:
    mean, std: of RGB in [0, 1].
    size: of the result, one side or (height, width), pixels.
    resize: how an image comes to that size:
      "square", the default, stretches it, bilinear and antialiased, in floats. Hugging Face's
        processor does so, and the published outputs of the weights came about so.
      "shorter" resizes the shorter side to 8/7 of `size` (256 for 224), bicubic on uint8, and cuts
        out the middle, as the reference's k-NN and linear evaluations do.
      None leaves the size as it is.
  """

  mean: tuple[float, float, float] = IMAGENET[0]
  std: tuple[float, float, float] = IMAGENET[1]
  size: int | tuple[int, int] = 224
  resize: Literal["square", "shorter"] | None = "square"

  def __post_init__(self):
    if self.resize not in ("square", "shorter", None):
      raise ValueError(f'resize must be "square", "shorter" or None, not {self.resize!r}')
    if self.resize == "shorter" and not isinstance(self.size, int):
      raise ValueError(f'resize="shorter" cuts a square: size must be one number, not {self.size}')
    if min(self._shape) < 1:
      raise ValueError(f"size must be positive, not {self.size}")

  @property
  def _shape(self) -> tuple[int, int]:
    return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

  def __call__(self, image: np.ndarray | Image.Image | str | os.PathLike) -> np.ndarray:
    """Prepares an image, or a batch of equal sizes.

    Args:
      image: uint8 [H, W, 3] or [B, H, W, 3] in RGB, a Pillow image, or the path of a file.

    Returns:
      float32 [h, w, 3] or [B, h, w, 3].

    Raises:
      ValueError: an array of another shape or dtype.
      DamagedImage: a file that is no image.
    """
    if isinstance(image, str | os.PathLike):
      image = decode(pathlib.Path(image), str(image))
    elif isinstance(image, Image.Image):
      image = image.convert("RGB")
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3:
      raise ValueError("an image must be uint8 [H, W, 3], or [B, H, W, 3], in RGB, not "
                       f"{image.dtype} {list(image.shape)}")
    if image.ndim == 4:
      return np.stack([self(single) for single in image])
    if self.resize == "shorter":
      image = center_crop(image, self.size, self.size * 8 // 7)
    x = image.astype(np.float32) / 255
    if self.resize == "square":
      x = _stretch(x, *self._shape)
    return (x - np.float32(self.mean)) / np.float32(self.std)


def _stretch(x: np.ndarray, height: int, width: int) -> np.ndarray:
  """Bilinear, antialiased resize of float32 [H, W, C]."""
  return np.stack([np.asarray(Image.fromarray(channel).resize((width, height), Image.BILINEAR))
                   for channel in np.moveaxis(x, -1, 0)], axis=-1)


def preprocess(weights: str | os.PathLike = "", size: int | tuple[int, int] = 224,
               resize: Literal["square", "shorter"] | None = "square") -> Preprocess:
  """What images must go through for the given weights.

  Args:
    weights: a name, a hub id or a path. A folder with a `preprocessor_config.json` states its mean
      and deviation; else SAT-493M weights, known by that in their name, have their own, and all
      others ImageNet's.
    size: of the result, one side or (height, width), pixels.
    resize: "square", "shorter" or None; see `Preprocess`.
  """
  config = pathlib.Path(weights) / "preprocessor_config.json"
  if weights and config.is_file():
    entries = json.loads(config.read_text())
    mean, std = (tuple(entries.get(f"image_{name}", default))
                 for name, default in zip(("mean", "std"), IMAGENET))
  else:
    mean, std = SATELLITE if re.search("sat[-_]?493m", str(weights).lower()) else IMAGENET
  return Preprocess(mean, std, size, resize)
