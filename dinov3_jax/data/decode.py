"""From an encoded image to RGB pixels."""

import contextlib
import dataclasses
import errno
import fcntl
import io
import os
import threading
from collections.abc import Iterator
from typing import BinaryIO, Literal

import numpy as np
from PIL import (
  Image,
  ImageColor,
  JpegImagePlugin,
  PngImagePlugin,
  UnidentifiedImageError,
  WebPImagePlugin,
)

from dinov3_jax.data import jpeg
from dinov3_jax.data.header import held
from dinov3_jax.data.stored import Stored
from dinov3_jax.data.walk import printable

ORIENTATION = 0x0112  # the tag of EXIF
BAND = 2**22  # pixels that are converted at once, so that no second copy of an image is needed
# Opened by their classes, for Image.open has a limit of pixels that is one for the whole process.
PLUGINS = {b"\xff\xd8\xff": JpegImagePlugin.jpeg_factory,
           b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
           b"RIFF": WebPImagePlugin.WebPImageFile}
# What there are pixels of; EXIF has their orientation.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf")
# What a machine is short of, while the file is fine.
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_one_at_a_time = threading.Lock()


class DamagedImage(Exception):
  """An image that cannot be read; carries its name and the reason, both printable."""

  def __init__(self, name: str, reason: object):
    name, reason = printable(name), printable(" ".join(str(reason).split()) or
                                              type(reason).__name__)
    super().__init__(name, reason)
    self.name, self.reason = name, reason

  def __str__(self):
    return f"{self.name} cannot be read: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Reads JPEG, PNG and WebP images as uint8 [H, W, 3] RGB, upright by their EXIF orientation.

  Pillow rather than OpenCV: a truncated file is an error here, not half an image. Metadata that
  cannot be read is passed over, for the pixels do not depend on it.

  Attributes:
    background: what shows through transparent pixels, a colour as Pillow reads it ("white",
      "#ff0000"). "" drops the transparency, as the reference does, and shows the colour that is
      stored under it, often black.
    depth: what of grey values of more than 8 bits is kept. "high_byte" is value >> 8, which is also
      what Pillow makes of 16-bit colours. A number of bits is for data that uses fewer of the 16:
      12 takes value >> 4, and 255 above. "range" spreads each image's own values, least to
      greatest, over 0 to 255. Floating-point values must lie in [0, 1], or take "range".
    max_pixels: an image with more is not read. Decoding takes 7 bytes a pixel at its peak.
    big_pixels: images with more are decoded one at a time, over all processes of the machine that
      can lock this file, so that several large ones do not meet in memory.
    least_side: 0 decodes every pixel. Else a JPEG is made smaller while it is decoded, by n/8, as
      long as the root of its number of pixels stays at least this, which takes simplejpeg.

  Raises:
    ValueError: settings that mean nothing.
  """

  background: str = ""
  depth: Literal["high_byte", "range"] | int = "high_byte"
  max_pixels: int = 2**28
  big_pixels: int = 2**26
  least_side: float = 0.0

  def __post_init__(self):
    if isinstance(self.depth, str) and self.depth.isdecimal():
      object.__setattr__(self, "depth", int(self.depth))  # as command lines have it
    depth = self.depth
    if depth not in ("high_byte", "range") and not (isinstance(depth, int) and 8 <= depth <= 16):
      raise ValueError(f'depth must be "high_byte", "range" or a number of bits from 8 to 16, not '
                       f"{depth!r}")
    for key in ("max_pixels", "big_pixels"):
      if not getattr(self, key) >= 1:
        raise ValueError(f"{key} must be at least 1, not {getattr(self, key)}")
    if self.background:
      try:
        ImageColor.getrgb(self.background)
      except ValueError as error:
        raise ValueError(f"background {self.background!r} is no colour: take a name such as "
                         '"white", "#rrggbb", or "" to drop transparency') from error

  def __call__(self, data: bytes | str | os.PathLike, name: str | os.PathLike) -> np.ndarray:
    """The pixels of an encoded image, uint8 [H, W, 3].

    Args:
      data: the encoded bytes, the path of a file, or an image of a source, which its own decoder
        reads.
      name: of the image, for the error.

    Raises:
      DamagedImage: it cannot be read, or is larger than `max_pixels`.
      MemoryError, OSError: the machine has no memory or file handle left.
    """
    if isinstance(data, Stored):
      return data.read()
    try:
      if not isinstance(data, bytes):
        with open(data, "rb") as file:
          # A file that is no JPEG is not read twice.
          data = file.read() if file.read(3) == b"\xff\xd8\xff" and not file.seek(0) else data
      if isinstance(data, bytes):
        pixels = jpeg.pixels(data, min(self.max_pixels, self.big_pixels), self.least_side)
        if pixels is not None:
          return pixels
      with io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb") as file:
        try:
          return self._read(file)
        except (SyntaxError, ValueError):
          file.seek(0)
          pixels = _pixels_of_png(file)
          if pixels is None:
            raise
        return self._read(io.BytesIO(pixels))
    except MemoryError:
      raise
    except Exception as error:  # Pillow's decoders raise nearly anything
      if isinstance(error, OSError) and error.errno in EXHAUSTED:
        raise
      raise DamagedImage(name, getattr(error, "strerror", None) or error) from error

  def _read(self, file: BinaryIO) -> np.ndarray:
    with open_image(file) as image:
      return self.rgb(image)

  def rgb(self, image: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image of any mode, uint8 [H, W, 3], turned upright.

    Raises:
      ValueError: it has more than `max_pixels`, or values that `depth` does not cover.
    """
    count = image.width * image.height
    if count > self.max_pixels:
      raise ValueError(
        f"its {image.width:,} x {image.height:,} = {count:,} pixels are more than max_pixels, "
        f"{self.max_pixels:,}; raise that (data.max_pixels in a recipe) if there is memory for it")
    with _alone() if count > self.big_pixels else contextlib.nullcontext():
      image.load()
      return self._convert(image)

  def _convert(self, image: Image.Image) -> np.ndarray:
    width, height = image.size
    orientation = _orientation(image)
    turned = orientation in (5, 6, 7, 8)
    pixels = np.empty((width, height, 3) if turned else (height, width, 3), np.uint8)
    unturned = _turn_back(pixels, orientation)  # a view that is filled as the image is stored
    scale = self._scale(image) if deep(image) else None
    rows = max(BAND // width, 1)
    for top in range(0, height, rows):
      bottom = min(top + rows, height)
      band = image if rows >= height else image.crop((0, top, width, bottom))
      if scale:
        unturned[top:bottom] = scale(np.asarray(band))[..., None]
      else:
        unturned[top:bottom] = np.asarray(self._colours(band))
    return pixels

  def _colours(self, image: Image.Image) -> Image.Image:
    """An image of 8 bits a channel in RGB."""
    if self.background and image.has_transparency_data:
      image = image.convert("RGBA")
      below = Image.new("RGBA", image.size, ImageColor.getrgb(self.background)[:3])
      return Image.alpha_composite(below, image).convert("RGB")
    if image.mode in ("RGBa", "La"):  # Pillow converts premultiplied colours in two steps alone
      image = image.convert({"RGBa": "RGBA", "La": "LA"}[image.mode])
    return image if image.mode == "RGB" else image.convert("RGB")

  def _scale(self, image: Image.Image):
    """The function that takes grey values of more than 8 bits to uint8."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
      raise ValueError("it has values that are not finite")
    if self.depth == "range":
      low, span = float(low), max(float(high) - float(low), np.finfo(np.float32).tiny)
      return lambda x: np.rint((x.astype(np.float64) - low) / span * 255).astype(np.uint8)
    if image.mode == "F":
      if low < 0 or high > 1:
        raise ValueError(f"its values lie in [{low:g}, {high:g}], not [0, 1]; depth "
                         '"range" (data.depth in a recipe) spreads them over the greys')
      return lambda x: np.rint(x * np.float32(255)).astype(np.uint8)
    if low < 0 or high > 65535:
      raise ValueError(f"its values lie in [{low}, {high}], not in 16 bits; depth "
                       '"range" (data.depth in a recipe) spreads them over the greys')
    bits = 16 if self.depth == "high_byte" else self.depth
    return lambda x: np.minimum(x >> (bits - 8), 255).astype(np.uint8)


decode = Decoder()  # as the reference reads images


def open_image(file: BinaryIO) -> Image.Image:
  """A Pillow image, whose header alone has been read. Pillow's limits of pixels do not apply to
  JPEG and PNG files.

  Raises:
    ValueError: it cannot be identified, or has more channels than RGB and transparency.
  """
  start = file.read(16)
  file.seek(0)
  for prefix, plugin in PLUGINS.items():
    if start.startswith(prefix):
      return plugin(file)
  channels = held(file).channels
  if channels > 4:
    raise ValueError(f"it has {channels} channels, which sources and packing carry as they are, "
                     "but nothing here uses yet: store the three that are to be seen as RGB")
  try:
    return Image.open(file)
  except UnidentifiedImageError:  # its message has no name of the image, but one of the object
    raise ValueError("cannot identify image file") from None


def deep(image: Image.Image) -> bool:
  """Whether a Pillow image has grey values of more than 8 bits."""
  return image.mode in ("I", "F") or image.mode.startswith("I;")


def _pixels_of_png(file: BinaryIO) -> bytes | None:
  """A PNG without its texts, profiles and other metadata, which Pillow may refuse; None if it is no
  PNG."""
  data = file.read()
  position, parts = 8, [data[:8]]
  if parts[0] != b"\x89PNG\r\n\x1a\n":
    return None
  while position + 12 <= len(data):
    size = int.from_bytes(data[position : position + 4], "big") + 12
    if data[position + 4 : position + 8] in PNG_CHUNKS:
      parts.append(data[position : position + size])
    position += size
  return b"".join(parts)


def _orientation(image: Image.Image) -> int:
  """1 to 8 as EXIF numbers them, 1 where there is none that can be read."""
  try:
    number = image.getexif().get(ORIENTATION)
  except Exception:  # of damaged metadata, nearly anything
    return 1
  return number if number in range(1, 9) else 1


def _turn_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """The view of upright pixels in which they lie as the file stores them."""
  if orientation in (5, 6, 7, 8):
    pixels = pixels.swapaxes(0, 1)
  return pixels[:: -1 if orientation in (3, 4, 6, 7) else 1,
                :: -1 if orientation in (2, 3, 7, 8) else 1]


@contextlib.contextmanager
def _alone() -> Iterator[None]:
  """Waits until no other thread or process is in here."""
  with _one_at_a_time, contextlib.ExitStack() as stack:
    # A lock on this very file needs nothing to be passed to workers, nor to be cleared away.
    with contextlib.suppress(OSError):  # some file systems have no locks
      file = stack.enter_context(open(__file__, "rb"))
      fcntl.flock(file, fcntl.LOCK_EX)
    yield
