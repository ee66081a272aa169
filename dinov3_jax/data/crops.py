"""Multi-crop: two global views, several local ones, and the Gram teacher's, of one image.

Geometry is torchvision's RandomResizedCrop and resize on PIL images (bicubic, antialiased), as in
the reference; what a crop goes through after that is in `augment`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from dinov3_jax.data import augment
from dinov3_jax.data.resizing import BAND, resize, resize_part

ASPECT = (3 / 4, 4 / 3)
WIDEST = 16  # times its height, of what an evaluation looks at


def random_window(height: int, width: int, scale: tuple[float, float],
                  rng: np.random.Generator) -> tuple[int, int, int, int]:
  """Draws the window of RandomResizedCrop.

  Area in U(scale) of the image, aspect ratio log-uniform in [3/4, 4/3]; after ten draws that do not
  fit, the largest centred window of a permitted aspect.

  Args:
    height, width: of the image, pixels.
    scale: least and greatest share of the image's area.
    rng: the randomness.

  Returns:
    (top, left, height, width), pixels.
  """
  low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
  for _ in range(10):
    share, aspect, down, right = rng.random(4).tolist()
    area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
    aspect = math.exp(low + (high - low) * aspect)
    w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if 0 < w <= width and 0 < h <= height:
      return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
  w = min(width, round(height * ASPECT[1]))
  h = min(height, round(width / ASPECT[0]))
  return (height - h) // 2, (width - w) // 2, h, w


def center_crop(image: np.ndarray, size: int, shorter: int | None = None) -> np.ndarray:
  """What evaluations see: the shorter side resized (bicubic), then the middle square.

  Of an image whose sides are to each other as 1 to 16 or more, the middle is cut out before.

  Args:
    image: uint8 [H, W, 3].
    size: side of the square, pixels.
    shorter: what the shorter side becomes first, at least `size`; None takes `size`. 256 with a
      `size` of 224 is the usual protocol.

  Returns:
    uint8 [size, size, 3].
  """
  shorter = size if shorter is None else shorter
  if shorter < size:
    raise ValueError(f"cannot cut {size} px from images resized to {shorter} px; "
                     f"resize to at least {size}")
  least = min(image.shape[:2])
  # Or a line of pixels, enlarged, would fill the memory.
  height, width = (min(side, WIDEST * least + (side + WIDEST * least) % 2)
                   for side in image.shape[:2])
  top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
  image = image[top : top + height, left : left + width]
  height, width = shorter * height // least, shorter * width // least
  if image.shape[:2] != (height, width):
    image = resize(image, height, width)
  top, left = round((height - size) / 2), round((width - size) / 2)
  return image[top : top + size, left : left + size]


def check_sizes(global_sizes: Sequence[int], local_sizes: Sequence[int], gram_sizes: Sequence[int],
                patch_size: int) -> None:
  """Raises ValueError unless the patch size divides every crop size.

  A local crop may end in half a patch: the reference's high-resolution recipe has 168 px crops
  with patches of 16, whose patch embedding never reads the last 8 rows and columns. `MultiCrop`
  cuts such a crop to whole patches, which is the same.

  Args:
    global_sizes, local_sizes, gram_sizes: sides in pixels; a Gram size of 0 means no Gram crops.
    patch_size: of the model, pixels.
  """
  for name, sizes in (("global", global_sizes), ("local", local_sizes), ("gram", gram_sizes)):
    for size in sizes:
      unit = patch_size / 2 if name == "local" else patch_size
      if size % unit or size < (0 if name == "gram" else patch_size):
        near = max(1, round(size / patch_size)) * patch_size
        raise ValueError(f"{name} crop size {size} is not a multiple of the patch size "
                         f"{patch_size}; take {near}, say")


def dtype_of(name: str) -> np.dtype:
  """Of an array that `MultiCrop` makes."""
  return np.dtype(np.float32 if name == "colors" else np.uint8)


@dataclasses.dataclass(frozen=True)
class MultiCrop:
  """Cuts and distorts the views of one image (DINOv3's augmentation, reference behaviour).

  Attributes:
    global_size, local_size: sides of the crops, pixels; a local size that ends in half a patch is
      cut to whole patches after the resize (see `check_sizes`).
    gram_size: side of the Gram teacher's crops; 0 for none. They are the global crops at another
      resolution.
    locals: local crops an image.
    global_scale, local_scale: ranges of a crop's share of the image's area.
    horizontal_flip: whether each crop is mirrored with probability 1/2.
    color_strength: of jitter, greyscale and solarization, as a share of the reference's.
    share_color_jitter: jitter and greyscale drawn once for the image, not for every crop.
    locals_from_globals: a local crop is a window, on the patch grid, of a global crop that was
      distorted anew; half of them come from each.
    gram_distortions: whether Gram crops carry the colours, blur and solarization of their global
      crop, or are plain.
    patch_size: of the model, pixels.
    colors: "host" distorts the crops; "device" leaves that to `device_colors`, and adds what was
      drawn for each crop. Windows and draws are the same either way.
    resizer: "exact" is Pillow's; "fast" that of cykooz-resizer, which differs by 0.1 to 0.2 levels
      in the mean and takes a third of the time. See `resizing`.
  """

  global_size: int = 224
  local_size: int = 96
  gram_size: int = 0
  locals: int = 8
  global_scale: tuple[float, float] = (0.32, 1.0)
  local_scale: tuple[float, float] = (0.05, 0.32)
  horizontal_flip: bool = True
  color_strength: float = 1.0
  share_color_jitter: bool = False
  locals_from_globals: bool = False
  gram_distortions: bool = True
  patch_size: int = 16
  colors: Literal["host", "device"] = "host"
  resizer: Literal["exact", "fast"] = "exact"

  def __post_init__(self):
    check_sizes([self.global_size], [self.local_size], [self.gram_size], self.patch_size)
    if self.locals < 1:
      raise ValueError(f"locals is {self.locals}; the method needs at least 1 local crop an image")
    for name in ("global_scale", "local_scale"):
      low, high = getattr(self, name)
      if not 0 < low <= high <= 1:
        raise ValueError(f"{name} {(low, high)} must be a range of shares of the image in (0, 1]")
    if not 0 <= self.color_strength <= 1:
      raise ValueError(f"color_strength is {self.color_strength}; it must be a share in [0, 1]")
    if self.locals_from_globals and self.local_size > self.global_size:
      raise ValueError(f"locals of {self.local_size} px do not fit into globals of "
                       f"{self.global_size} px; make them smaller or clear locals_from_globals")
    if self.colors not in ("host", "device"):
      raise ValueError(f"colors must be host or device, not {self.colors!r}")
    if self.resizer not in ("exact", "fast"):
      raise ValueError(f"resizer must be exact or fast, not {self.resizer!r}")
    if self.colors == "device":
      for name, refused in (("share_color_jitter", self.share_color_jitter),
                            ("locals_from_globals", self.locals_from_globals),
                            ("gram_distortions", self.gram_size and self.gram_distortions)):
        if refused:
          raise ValueError(f"colors=device does not go with {name}, which cuts crops out of what "
                           "is distorted: take colors=host (data.colors in a recipe)")

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape of every array a call returns."""
    local = self.local_size // self.patch_size * self.patch_size
    sides = {"global_crops": (2, self.global_size), "local_crops": (self.locals, local)}
    if self.gram_size:
      sides["gram_crops"] = (2, self.gram_size)
    shapes = {name: (count, side, side, 3) for name, (count, side) in sides.items()}
    if self.colors == "device":
      shapes["colors"] = (2 + self.locals, augment.DRAWN)
    return shapes

  def __call__(self, image: np.ndarray, rng: np.random.Generator,
               into: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Draws the views of one image.

    Args:
      image: uint8 [H, W, 3], RGB; windows are drawn at its size before decoding (`jpeg.Smaller`).
      rng: the only randomness.
      into: arrays of `shapes` to be filled, such as an image's place in a batch; None: new ones.

    Returns:
      `into`, filled: `global_crops` [2, G, G, 3], `local_crops` [L, l, l, 3] and, with a
      `gram_size`, `gram_crops` [2, g, g, 3], all uint8. With `colors="device"`, these are not
      distorted, and `colors` float32 [2 + L, DRAWN] is what `device_colors.distort` takes: that of
      the global crops, then of the local ones.
    """
    full = getattr(image, "full", None) or image.shape[:2]  # before it was decoded
    if self.share_color_jitter:
      image = augment.distort_color(image, rng, self.color_strength)
    # Pillow's copy of the whole is faster for Pillow to cut from, unless it is large.
    as_it_is = self.resizer == "fast" or full != image.shape[:2] or math.prod(full) > BAND
    picture = image if as_it_is else Image.fromarray(image)
    bases = [self._cut(picture, full, max(self.global_size, self.gram_size), self.global_scale, rng)
             for _ in range(2)]
    crops = into or {
      name: np.empty(shape, dtype_of(name)) for name, shape in self.shapes.items()}

    plain = [self._square(base, self.global_size) for base in bases]
    gram_from_distorted = self.gram_size and self.gram_distortions
    for i, base in enumerate(bases):
      source = base if gram_from_distorted else plain[i]
      view = self._distort(source, rng, augment.BLUR_GLOBAL[i], augment.SOLARIZE_GLOBAL[i],
                           crops.get("colors", ())[i : i + 1])
      crops["global_crops"][i] = self._square(view, self.global_size)
      if self.gram_size:
        crops["gram_crops"][i] = self._square(view if gram_from_distorted else base,
                                              self.gram_size)

    side = crops["local_crops"].shape[1]
    for i in range(self.locals):
      if self.locals_from_globals:
        view = self._distort(plain[2 * i // self.locals], rng, augment.BLUR_LOCAL)
        spots = (self.global_size - self.local_size) // self.patch_size + 1
        top, left = rng.integers(spots, size=2) * self.patch_size
      else:
        base = self._cut(picture, full, self.local_size, self.local_scale, rng)
        drawn = crops.get("colors", ())[2 + i : 3 + i]
        view, top, left = self._distort(base, rng, augment.BLUR_LOCAL, drawn=drawn), 0, 0
      crops["local_crops"][i] = view[top : top + side, left : left + side]
    return crops

  def _cut(self, picture: np.ndarray | Image.Image, full: tuple[int, int], size: int,
           scale: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """A random window, drawn in the pixels of the image at its `full` height and width."""
    top, left, height, width = random_window(*full, scale, rng)
    if isinstance(picture, Image.Image):
      # Not Pillow's resize(box=...): that would let pixels from outside the window into its border.
      window = picture.crop((left, top, left + width, top + height))
      crop = resize(window, size, size, self.resizer)
    elif picture.shape[:2] == full:
      window = picture[top : top + height, left : left + width]
      crop = resize(window, size, size, self.resizer)
    else:
      down, across = (has / had for has, had in zip(picture.shape, full))
      box = left * across, top * down, (left + width) * across, (top + height) * down
      crop = resize_part(picture, box, size, size, self.resizer)
    return cv2.flip(crop, 1) if rng.random() < 0.5 and self.horizontal_flip else crop

  def _distort(self, crop: np.ndarray, rng: np.random.Generator, blur: float,
               solarized: float = 0.0, drawn: Sequence[np.ndarray] = ()) -> np.ndarray:
    """A crop distorted; or as it is, where `drawn` has a row to take what is drawn for it."""
    if len(drawn):
      color = augment.draw_color(rng, self.color_strength)
      tone = augment.draw_tone(rng, blur, self.color_strength * solarized)
      drawn[0][:] = augment.as_row(color, tone)
      return crop
    if not self.share_color_jitter:
      crop = augment.distort_color(crop, rng, self.color_strength)
    return augment.distort_tone(crop, rng, blur, self.color_strength * solarized)

  def _square(self, image: np.ndarray, size: int) -> np.ndarray:
    return image if image.shape[0] == size else resize(image, size, size, self.resizer)
