"""Pictures of what an evaluation found."""

from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw

from dinov3_jax.evals import pca

FRAME_MILLISECONDS = 100


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """An image uint8 [H, W, 3] with labels [H, W] in colours, and the background (0) as it is."""
  colours = 255 * pca.heatmap(labels / max(int(labels.max()), 1), 0, 1.2)
  return np.where(labels[..., None] > 0, 0.45 * image + 0.55 * colours, image).astype(np.uint8)


def matched(first: np.ndarray, second: np.ndarray, sources: np.ndarray, targets: np.ndarray,
            right: Sequence[bool]) -> np.ndarray:
  """Two images side by side, and a line from each point to its match: green if right, else red.

  Args:
    first, second: uint8 [H, W, 3] of one height.
    sources, targets: (x, y) in the first and in the second one, [n, 2].
    right: of each match.
  """
  picture = Image.fromarray(np.concatenate([first, second], 1))
  draw = ImageDraw.Draw(picture)
  for (x, y), (u, v), good in zip(sources, targets, right):
    draw.line([float(x), float(y), float(u) + first.shape[1], float(v)],
              fill="lime" if good else "red")
  return np.asarray(picture)


def write(path: epath.PathLike, picture: np.ndarray | Sequence[np.ndarray]):
  """Writes a canvas uint8 [H, W, 3], or frames of one size as an animated file (.gif)."""
  if isinstance(picture, np.ndarray):
    pca.save(path, picture)
    return
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  first, *others = [Image.fromarray(frame) for frame in picture]
  with path.open("wb") as file:
    first.save(file, path.suffix[1:], save_all=True, append_images=others,
               duration=FRAME_MILLISECONDS, loop=0)
