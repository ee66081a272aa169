"""From an encoded image to RGB pixels."""

import io
import os

import numpy as np
from PIL import Image, ImageOps


class DamagedImage(Exception):
  """An image that cannot be read; carries its name and the reason."""

  def __init__(self, name: str, reason: object):
    super().__init__(name, str(reason))
    self.name, self.reason = name, str(reason)

  def __str__(self):
    return f"{self.name} cannot be read: {self.reason}"


def decode(data: bytes | os.PathLike, name: str) -> np.ndarray:
  """Reads a JPEG, PNG or WebP image as uint8 [H, W, 3] RGB, turned upright by its EXIF orientation.

  Pillow rather than OpenCV: a truncated file is an error here, not half an image. Transparency is
  dropped, as in the reference.

  Args:
    data: the encoded bytes, or the path of a file.
    name: of the image, for the error.

  Raises:
    DamagedImage: it cannot be read.
  """
  try:
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
      ImageOps.exif_transpose(image, in_place=True)
      return np.asarray(image.convert("RGB"))
  except Exception as error:  # Pillow's decoders raise nearly anything
    raise DamagedImage(name, error) from error
