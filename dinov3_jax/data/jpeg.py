"""JPEG files by simplejpeg, where that gives what Pillow gives, in half the time."""

import math

import numpy as np

try:
  import simplejpeg
except ImportError:  # Pillow reads everything
  simplejpeg = None

LEAD = 4096  # bytes in which metadata about the orientation stands, if there is any
KNOWN = ("YCbCr", "Gray", "RGB")  # the others become RGB in ways of their own


class Smaller(np.ndarray):
  """Pixels of an image that became smaller while it was decoded; `full` is its own height and
  width."""

  full: tuple[int, int] | None = None


def pixels(data: bytes, most: int, least_side: float = 0.0) -> np.ndarray | None:
  """The pixels of a JPEG file, or None for what is left to Pillow.

  That is: other files, those with EXIF (which may turn the image), CMYK, larger images, and
  whatever is damaged, so that errors and what counts as one stay the same.

  Args:
    data: the encoded bytes.
    most: pixels of the largest image that is read here.
    least_side: 0 reads every pixel. Else the image is made smaller while it is decoded, by n/8, as
      long as the root of its number of pixels stays at least this.

  Returns:
    uint8 [H, W, 3], bit for bit what Pillow decodes; or `Smaller`; or None.
  """
  if simplejpeg is None or data[:2] != b"\xff\xd8" or b"Exif\x00\x00" in data[:LEAD]:
    return None
  try:
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    if space not in KNOWN or height * width > most:
      return None
    least = {}
    if least_side:
      scale = min(least_side / math.sqrt(height * width), 1.0)
      least = dict(min_height=max(math.ceil(height * scale), 1),
                   min_width=max(math.ceil(width * scale), 1))
    decoded = simplejpeg.decode_jpeg(data, "RGB", **least)
    if decoded.shape[:2] != (height, width):
      decoded = decoded.view(Smaller)
      decoded.full = height, width
    return decoded
  except ValueError:
    return None
