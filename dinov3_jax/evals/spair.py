"""Semantic correspondence on SPair-71k (Min et al. 2019), as Probe3D scores it."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

THRESHOLD = 0.1  # of the target's box


def squared(image: np.ndarray, colour: int = 255) -> np.ndarray:
  """An image uint8 [H, W, 3], padded at its right and bottom to a square; white by default."""
  side = max(image.shape[:2])
  padding = ((0, side - image.shape[0]), (0, side - image.shape[1]), (0, 0))
  return np.pad(image, padding, constant_values=colour)


def scaled_keypoints(keypoints, side: int, size: int) -> np.ndarray:
  """Keypoints (x, y) of an image of this longer side, in one of `size` pixels, cut to integers."""
  return (np.asarray(keypoints, np.float64) * size / side).astype(np.int64)


def keypoint_errors(source, target, source_points, target_points, size: int, scale: float
                    ) -> np.ndarray:
  """How far from its target each keypoint is found.

  The source's unit features are interpolated at its keypoint, with the corner patches' centres at
  the image's corners; it is found at the corner, not the centre, of the target's patch of the
  largest cosine. Both are Probe3D's.

  Args:
    source, target: patches [h, w, D] of square images.
    source_points, target_points: the same keypoints in both, (x, y) in pixels, [K, 2].
    size: side of both images, in pixels.
    scale: the longer side of the target's box, divided by that of its image.

  Returns:
    Distances, divided by the image's side and by `scale`: float64 [K].

  Raises:
    ValueError: as many keypoints are not in both.
  """
  source_points, target_points = np.asarray(source_points), np.asarray(target_points)
  if source_points.shape != target_points.shape:
    raise ValueError(f"the pair has {len(source_points)} keypoints in its source and "
                     f"{len(target_points)} in its target")
  source, target = jnp.asarray(source, jnp.float32), jnp.asarray(target, jnp.float32)
  rows, columns, dims = target.shape
  x, y = (source_points[:, i] / size * (n - 1) for i, n in ((0, columns), (1, rows)))
  unit = lambda v: v / jnp.maximum(jnp.linalg.norm(v, axis=-1, keepdims=True), 1e-12)
  queries = _bilinear(unit(source), y, x)
  cosine = jnp.matmul(unit(queries), unit(target).reshape(-1, dims).T, precision="float32")
  row, column = np.divmod(np.asarray(cosine.argmax(1)), columns)
  found = np.stack([column / columns, row / rows], axis=1)
  return np.linalg.norm(found - target_points / size, axis=1) / scale


def recall(errors: Sequence[np.ndarray], threshold: float = THRESHOLD) -> float:
  """The share of all keypoints of a class's pairs that are found, from 0 to 1.

  Means over images, which others report, differ by one to three points. The benchmark's figure is
  the mean over its 18 classes.
  """
  return float((np.concatenate(errors) < threshold).mean())


def _bilinear(x, rows, columns):
  """x [h, w, D] at places [K] each -> [K, D]."""
  top, left = (np.minimum(np.floor(v).astype(int), n - 2)
               for v, n in ((rows, x.shape[0]), (columns, x.shape[1])))
  down, right = (rows - top)[:, None], (columns - left)[:, None]
  upper = x[top, left] * (1 - right) + x[top, left + 1] * right
  lower = x[top + 1, left] * (1 - right) + x[top + 1, left + 1] * right
  return upper * (1 - down) + lower * down
