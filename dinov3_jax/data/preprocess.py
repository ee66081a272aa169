"""From a picture to what a released backbone expects of its input."""

import dataclasses
import os
import re
from typing import Any, Literal

import numpy as np
from PIL import Image

from dinov3_jax.data.crops import center_crop
from dinov3_jax.data.decode import Decoder, decode
from dinov3_jax.weights.contents import is_count, is_number, read_json, require
from dinov3_jax.weights.places import expand, is_native

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of RGB in [0, 1]
LARGEST = 16384  # side of an image that a file of settings may ask for, pixels
BAND = 2**22  # pixels that are turned into floats at once
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
    decoder: of files and Pillow images.
  """

  mean: tuple[float, float, float] = IMAGENET[0]
  std: tuple[float, float, float] = IMAGENET[1]
  size: int | tuple[int, int] = 224
  resize: Literal["square", "shorter"] | None = "square"
  decoder: Decoder = decode

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
      image: uint8 [H, W, 3] or [B, H, W, 3] in RGB, a Pillow image of any mode, or the path of a
        file, or an image of a source (`Stored`). Files and Pillow images are turned upright by
        their EXIF orientation alike.

    Returns:
      float32 [h, w, 3] or [B, h, w, 3].

    Raises:
      ValueError: an array of another shape or dtype, a Pillow image that the decoder refuses.
      DamagedImage: a file that is no image, or that the decoder refuses.
    """
    if isinstance(image, str | os.PathLike):
      image = self.decoder(image, image)
    elif isinstance(image, Image.Image):
      image = self.decoder.rgb(image)
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] != 3:
      raise ValueError("an image must be uint8 [H, W, 3], or [B, H, W, 3], in RGB, not "
                       f"{image.dtype} {list(image.shape)}")
    if image.ndim == 4:
      return np.stack([self(single) for single in image])
    if self.resize == "shorter":
      image = center_crop(image, self.size, self.size * 8 // 7)
    if self.resize == "square":
      x = _stretch(image, *self._shape)
    else:
      x = image.astype(np.float32)
      x /= 255
    x -= np.float32(self.mean)
    x /= np.float32(self.std)
    return x


def _stretch(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Bilinear, antialiased resize of uint8 [H, W, C] in floats, to float32 in [0, 1].

  Of a large image, one channel at a time is in floats, and only once.
  """
  rows = max(BAND // image.shape[1], 1)
  x = np.empty((height, width, image.shape[2]), np.float32)
  for channel in range(image.shape[2]):
    x[..., channel] = _floats(image[..., channel], rows).resize((width, height), Image.BILINEAR)
  return x


def _floats(channel: np.ndarray, rows: int) -> Image.Image:
  """A Pillow image of floats in [0, 1] from uint8 [H, W], made of so many rows at once."""
  bands = (Image.fromarray(channel[top : top + rows].astype(np.float32) / 255)
           for top in range(0, len(channel), rows))
  if rows >= len(channel):
    return next(bands)
  picture = Image.new("F", channel.shape[::-1])
  for i, band in enumerate(bands):
    picture.paste(band, (0, i * rows))
  return picture


def preprocess(weights: str | os.PathLike = "", size: int | tuple[int, int] | None = None,
               resize: Literal["square", "shorter"] | None = "square") -> Preprocess:
  """What images must go through for the given weights.

  A run of our own trainer has its crops' size, mean and deviation; other weights what the
  `preprocessor_config.json` in their folder says. Without one, SAT-493M weights, known by that in
  their name, have their own mean and deviation, and all others ImageNet's.

  Args:
    weights: the path of a folder or a file (`~` is the home directory), or a name or a hub id, of
      which nothing is fetched.
    size: of the result, one side or (height, width), pixels; None: what the weights say, else 224.
    resize: "square", "shorter" or None; see `Preprocess`.

  Raises:
    ValueError: the `preprocessor_config.json` is damaged, or asks for what cannot be done here; or
      a run of text, whose images go through `load_text(...).preprocess`.
  """
  path = expand(weights)
  if weights and is_native(path):
    from dinov3_jax.weights import native  # Orbax is slow to import
    config = native.stored_settings(native.locate(path))
    native.check_backbone(config)
    crops = config["crops"]
    return Preprocess(tuple(crops["mean"]), tuple(crops["std"]), size or crops["global_sizes"][0],
                      resize)
  config = (path.parent if path.is_file() else path) / "preprocessor_config.json"
  if weights and config.is_file():
    try:
      mean, std, stated = _of_processor(read_json(config))
    except ValueError as error:
      named = str(config) in str(error)
      raise ValueError(str(error) if named else f"{config}: {error}") from error
  else:
    mean, std = SATELLITE if re.search("sat[-_]?493m", str(weights).lower()) else IMAGENET
    stated = 224
  return Preprocess(mean, std, size or stated, resize)


def _of_processor(config: dict[str, Any]) -> tuple[tuple, tuple, int | tuple[int, int]]:
  """Mean, deviation and size as a processor of Hugging Face has them."""
  factor = require(config, "rescale_factor", 1 / 255, is_number, "a number")
  if not config.get("do_rescale", True) or abs(factor * 255 - 1) > 1e-3:
    raise ValueError("only images that are rescaled by 1/255 are supported")
  mean, std = (tuple(require(
      config, f"image_{name}", default, lambda x: isinstance(x, list | tuple) and len(x) == 3
      and all(is_number(v) and (v > 0 or name == "mean") for v in x),  # noqa: B023
      f"three {'' if name == 'mean' else 'positive '}numbers"))
      for name, default in zip(("mean", "std"), IMAGENET))
  if not config.get("do_normalize", True):
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
  # What is left of the image in the end: the middle, where that is cut out.
  key = "crop_size" if config.get("do_center_crop") and config.get("crop_size") else "size"
  size = require(config, key, 224, lambda x: _sides(x) is not None,
                 "a number of pixels up to 16384, or height and width, or shortest_edge")
  return mean, std, _sides(size)


def _sides(size: Any) -> int | tuple[int, int] | None:
  """One side, or height and width where they differ; None for what is no size."""
  if isinstance(size, dict):
    names = ("height", "width") if {"height", "width"} <= size.keys() else ("shortest_edge",)
    size = [size.get(name) for name in names]
  sides = list(size) if isinstance(size, list | tuple) else [size]
  if len(sides) not in (1, 2) or not all(is_count(side) and side <= LARGEST for side in sides):
    return None
  return sides[0] if len(set(sides)) == 1 else tuple(sides)
