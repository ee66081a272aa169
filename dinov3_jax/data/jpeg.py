"""JPEG files by simplejpeg, where that gives what Pillow gives, in half the time."""

import math

import numpy as np

try:
  import simplejpeg
except ImportError:  # Pillow reads everything
  simplejpeg = None

EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"  # how what tells an orientation starts
SCAN, APP1 = 0xDA, 0xE1
# Markers whose segments Pillow passes by their lengths; what follows others it reads byte by byte.
LONG = frozenset(range(0xC0, 0xFF)) - {0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)}
KNOWN = ("YCbCr", "Gray", "RGB")  # the others become RGB in ways of their own


class Smaller(np.ndarray):
  """Pixels of an image that became smaller while it was decoded; `full` is its own height and
  width."""

  full: tuple[int, int] | None = None


def pixels(data: bytes, most: int, least_side: float = 0.0) -> np.ndarray | None:
  """The pixels of a JPEG file, or None for what is left to Pillow.

  That is: other files, those with EXIF or an orientation in XMP (which may turn the image), CMYK,
  larger images, and whatever is damaged, so that errors and what counts as one stay the same.

  Args:
    data: the encoded bytes.
    most: pixels of the largest image that is read here.
    least_side: 0 reads every pixel. Else the image is made smaller while it is decoded, by n/8, as
      long as the root of its number of pixels stays at least this.

  Returns:
    uint8 [H, W, 3], bit for bit what Pillow decodes; or `Smaller`; or None.
  """
  if simplejpeg is None or data[:2] != b"\xff\xd8" or _may_be_turned(data):
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


def _may_be_turned(data: bytes) -> bool:
  """Whether metadata ahead of the pixels may tell an orientation, or is not laid out as it should
  be, so that only Pillow knows what it finds there."""
  at = 2
  while data[at : at + 1] == b"\xff":
    marker, size = data[at + 1 : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
    if not marker or marker[0] not in LONG or size < 2:
      return True
    if marker[0] == SCAN:
      return False
    if marker[0] == APP1:
      if data.startswith(EXIF, at + 4):
        return True
      if data.startswith(XMP, at + 4) and data.find(b"tiff:Orientation", at, at + 2 + size) >= 0:
        return True
    at += 2 + size
  return True
