"""Resizes images."""

import logging
import math
import threading
from typing import Literal

import numpy as np
from PIL import Image

try:
  import cykooz_resizer
except ImportError:  # an extra, for there are no wheels of it for some platforms
  cykooz_resizer = None

log = logging.getLogger(__name__)

GAP = 3.0  # how many times larger than the result an image stays that is averaged first
BAND = 2**22  # pixels that Pillow gets a copy of at once, where it can do with a part

_told = []
_threads = threading.local()


def resize(image: np.ndarray | Image.Image, height: int, width: int,
           how: Literal["exact", "fast"] = "exact") -> np.ndarray:
  """Bicubic, antialiased when it shrinks.

  "exact" is Pillow's; of what shrinks more than sixfold, pixels are averaged by a whole factor
  first. So far apart, the two differ by next to nothing, and a large photograph takes a fraction of
  the time. The usual sizes never get there and are exactly the reference's.

  "fast" is the same filter as cykooz-resizer computes it. Where that is not installed, it is
  "exact", and the log says so once.

  Args:
    image: uint8 [H, W, 3], or a Pillow image in RGB.
    height, width: of the result, pixels.
    how: see above.

  Returns:
    uint8 [height, width, 3].
  """
  if how == "fast" and cykooz_resizer:
    return _fast(np.asarray(image), height, width)
  if how == "fast" and not _told:
    _told.append(True)
    log.warning("cykooz-resizer is not installed: windows are resized by Pillow, which takes three "
                "times as long (pip install 'dinov3_jax[fast]')")
  if isinstance(image, Image.Image):
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=GAP))
  rows, columns = image.shape[:2]
  down, across = (max(int(had / gets / GAP), 1) for had, gets in ((rows, height), (columns, width)))
  box = None
  if rows * columns > BAND and down * across > 1:
    # As Pillow does with a reducing_gap, but without a second copy of the large image.
    small = np.empty((-(-rows // down), -(-columns // across), 3), np.uint8)
    step = max(BAND // columns // down, 1)  # rows of the small one
    for top in range(0, len(small), step):
      band = Image.fromarray(image[top * down : (top + step) * down])
      small[top : top + step] = band.reduce((across, down))
    image, box = small, (0, 0, columns / across, rows / down)
  resized = Image.fromarray(image).resize(
    (width, height), Image.Resampling.BICUBIC, box, None if box else GAP)
  return np.asarray(resized)


def resize_part(image: np.ndarray, box: tuple[float, float, float, float], height: int, width: int,
                how: Literal["exact", "fast"] = "exact") -> np.ndarray:
  """The same of a part of an image whose edges lie between pixels.

  Args:
    image: uint8 [H, W, 3].
    box: left, top, right and bottom of the part, pixels.
    height, width, how: see `resize`.

  Returns:
    uint8 [height, width, 3].
  """
  left, top, right, bottom = box
  x, y = int(left), int(top)
  window = image[y : math.ceil(bottom - 1e-6), x : math.ceil(right - 1e-6)]
  rows, columns = window.shape[:2]  # of what the part touches
  left, top, right, bottom = left - x, top - y, min(right - x, columns), min(bottom - y, rows)
  if how == "fast" and cykooz_resizer:
    return _fast(window, height, width, (left, top, right - left, bottom - top))
  resized = Image.fromarray(np.ascontiguousarray(window)).resize(
    (width, height), Image.Resampling.BICUBIC, (left, top, right, bottom), GAP)
  return np.asarray(resized)


def _fast(image: np.ndarray, height: int, width: int,
          box: tuple[float, float, float, float] | None = None) -> np.ndarray:
  """By cykooz-resizer; `box` is left, top, width and height."""
  fast = cykooz_resizer
  if not hasattr(_threads, "resizer"):
    _threads.resizer = fast.Resizer()
    _threads.options = fast.ResizeOptions(fast.ResizeAlg.convolution(fast.FilterType.catmull_rom))
  rows, columns = image.shape[:2]
  source = fast.ImageData(columns, rows, fast.PixelType.U8x3, image.tobytes())
  result = fast.ImageData(width, height, fast.PixelType.U8x3)
  options = _threads.options
  if box:
    options = fast.ResizeOptions(options.resize_alg, crop_box=fast.CropBox(*box))
  _threads.resizer.resize(source, result, options)
  return np.frombuffer(result.get_buffer(), np.uint8).reshape(height, width, 3)
