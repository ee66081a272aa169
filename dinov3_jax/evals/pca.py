"""Pictures of patch features: their main directions as colours, and similarities as a map."""

import math

import numpy as np
from etils import epath
from PIL import Image

# Ever brighter: dark blue, purple, red, orange, pale yellow.
RAMP = np.array([[8, 8, 40], [72, 18, 110], [158, 42, 99], [226, 88, 62], [250, 166, 52],
                 [252, 246, 180]]) / 255


def _whitened(x: np.ndarray, count: int) -> np.ndarray:
  """Projections [N, count] of rows [N, D] on their principal axes, each of variance 1."""
  noise = 1e-12 * np.square(x).sum(-1).mean()  # the rounding of float32 features, about
  x = x - x.mean(0)
  if len(x) >= x.shape[1]:
    variance, axes = np.linalg.eigh(x.T @ x / len(x))
    projections = x @ axes[:, -count:] / np.sqrt(np.maximum(variance[-count:], noise + 1e-30))
  else:
    variance, axes = np.linalg.eigh(x @ x.T / len(x))
    projections = axes[:, -count:] * len(x) ** 0.5
  projections = np.where(variance[-count:] > noise, projections, 0)
  # An axis and its opposite are equally right: let the largest entry of each be positive.
  axes = x.T @ projections
  projections *= np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
  missing = count - projections.shape[1]
  return np.pad(projections[:, ::-1], ((0, 0), (0, missing)))


def pca_rgb(patches, mask=None, joint: bool = True) -> np.ndarray:
  """The first three principal components of patch features, as colours.

  Components are whitened and pass through sigmoid(2x), as in the reference's notebook: vivid, and
  indifferent to a few outlying patches. Their signs are fixed, so that equal features give equal
  colours.

  Args:
    patches: [B, h, w, D], any float dtype, D >= 3.
    mask: bool [B, h, w], the foreground: the only patches that are analysed and coloured, the rest
      stays black. None takes all.
    joint: one PCA over all images, so that equal parts share a colour; else one for each image.

  Returns:
    float32 [B, h, w, 3] in [0, 1].

  Raises:
    ValueError: on shapes that do not fit, or on features that are not finite.
  """
  patches = np.asarray(patches, np.float32)
  if patches.ndim != 4 or patches.shape[-1] < 3:
    raise ValueError(f"patches must be [B, h, w, D] with D of at least 3, not {patches.shape}")
  mask = np.ones(patches.shape[:3], bool) if mask is None else np.asarray(mask, bool)
  if mask.shape != patches.shape[:3]:
    raise ValueError(f"the mask must be {patches.shape[:3]} like the patches, not {mask.shape}")
  if not np.isfinite(patches[mask]).all():
    raise ValueError("the patch features are not all finite")
  if not joint:
    return np.concatenate([pca_rgb(p[None], m[None]) for p, m in zip(patches, mask)])
  rgb = np.zeros((*mask.shape, 3), np.float32)
  if mask.any():
    rgb[mask] = 1 / (1 + np.exp(-2 * _whitened(patches[mask].astype(np.float64), 3)))
  return rgb


def similarity_map(patches, position: tuple[int, int]) -> np.ndarray:
  """Cosine similarity of every patch to the one at `position`.

  Args:
    patches: [h, w, D].
    position: (row, column) of the chosen patch, in patches.

  Returns:
    float32 [h, w] in [-1, 1].

  Raises:
    ValueError: if `position` lies outside.
  """
  patches = np.asarray(patches, np.float32)
  height, width = patches.shape[:2]
  row, column = position
  if not (0 <= row < height and 0 <= column < width):
    raise ValueError(f"patch {position} lies outside the {height} x {width} patches")
  unit = patches / np.maximum(np.linalg.norm(patches, axis=-1, keepdims=True), 1e-12)
  return np.clip(unit @ unit[row, column], -1, 1)


def heatmap(values, low: float | None = None, high: float | None = None) -> np.ndarray:
  """Numbers [...] as colours [..., 3] in [0, 1], dark for `low` (None: the least) to bright."""
  values = np.asarray(values, np.float32)
  low = values.min() if low is None else low
  high = values.max() if high is None else high
  place = np.clip((values - low) / max(high - low, 1e-12), 0, 1) * (len(RAMP) - 1)
  return np.stack([np.interp(place, range(len(RAMP)), channel) for channel in RAMP.T], axis=-1)


def enlarge(colours, height: int, width: int) -> np.ndarray:
  """Colours [h, w, 3] in [0, 1] as a smooth uint8 picture [height, width, 3]."""
  small = Image.fromarray(np.round(np.asarray(colours) * 255).astype(np.uint8))
  return np.asarray(small.resize((width, height), Image.BICUBIC))


def grid(cells, columns: int | None = None, margin: int = 12, gap: int = 4) -> np.ndarray:
  """Puts pictures on a white canvas.

  Args:
    cells: one list a cell, of uint8 pictures [H, W, 3] that stand side by side, all of one size.
    columns: cells a row; None makes the canvas about square.
    margin: white pixels around cells.
    gap: white pixels between the pictures of a cell.

  Returns:
    uint8 [height, width, 3].
  """
  height, width = cells[0][0].shape[:2]
  cell_width = len(cells[0]) * (width + gap) - gap
  if columns is None:
    columns = math.ceil((len(cells) * (height + margin) / (cell_width + margin)) ** 0.5)
  columns = min(max(columns, 1), len(cells))
  rows = -(-len(cells) // columns)
  canvas = np.full((margin + rows * (height + margin), margin + columns * (cell_width + margin), 3),
                   255, np.uint8)
  for i, cell in enumerate(cells):
    top = margin + i // columns * (height + margin)
    left = margin + i % columns * (cell_width + margin)
    for j, picture in enumerate(cell):
      start = left + j * (width + gap)
      canvas[top:top + height, start:start + width] = picture
  return canvas


def pca_picture(images, patches, mask=None, joint: bool = True, columns: int | None = None,
                least: int = 160) -> np.ndarray:
  """Each image beside the PCA of its patch features, in a grid.

  Args:
    images: uint8 [B, H, W, 3].
    patches: features of these images, [B, h, w, D].
    mask: bool [B, h, w], the foreground, as in `pca_rgb`.
    joint: one PCA over all images.
    columns: pairs a row; None makes the canvas about square.
    least: images lower than this many pixels are enlarged by a whole factor.

  Returns:
    The canvas, uint8 [height, width, 3].

  Raises:
    ValueError: if there are not as many images as features, and as `pca_rgb` does.
  """
  images = np.asarray(images)
  if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(patches):
    raise ValueError(f"a picture of {len(patches)} feature maps needs as many uint8 images "
                     f"[B, H, W, 3], not {images.dtype} {images.shape}")
  colours = pca_rgb(patches, mask, joint)
  factor = math.ceil(least / images.shape[1])
  images = images.repeat(factor, axis=1).repeat(factor, axis=2)
  height, width = images.shape[1:3]
  return grid([[image, enlarge(c, height, width)] for image, c in zip(images, colours)], columns)


def save(path: epath.PathLike, canvas: np.ndarray) -> None:
  """Writes a uint8 canvas [H, W, 3]; the suffix of `path`, local or in a bucket, is the format."""
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("wb") as file:
    Image.fromarray(canvas).save(file, Image.registered_extensions()[path.suffix.lower()])
