"""J and F of the masks of a video, as DAVIS 2017 scores them (Pont-Tuset et al. 2017)."""

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

VOID = 255
TOLERANCE = 0.008  # of the diagonal: how far apart boundaries may lie


def region(predicted, truth, void=None) -> float:
  """J: the intersection over union of two masks bool [H, W]; 1 if both are empty.

  Pixels of `void` (bool [H, W]) do not count.
  """
  predicted, truth = (np.asarray(x, bool) for x in (predicted, truth))
  if void is not None:
    predicted, truth = predicted & ~void, truth & ~void
  union = (predicted | truth).sum()
  return float((predicted & truth).sum() / union) if union else 1.0


def boundary(mask) -> np.ndarray:
  """The pixels of a mask, bool [H, W], that differ from their right, lower or lower right one.

  In the last row only the right one is looked at, in the last column only the lower one; the last
  corner is never a boundary.
  """
  mask = np.asarray(mask, bool)
  result = np.zeros_like(mask)
  result[:-1, :-1] = ((mask[:-1, :-1] ^ mask[:-1, 1:]) | (mask[:-1, :-1] ^ mask[1:, :-1])
                      | (mask[:-1, :-1] ^ mask[1:, 1:]))
  result[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
  result[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
  return result


def boundary_radius(height: int, width: int) -> int:
  """How far apart boundaries may lie, in pixels."""
  return math.ceil(TOLERANCE * math.hypot(height, width))


def contour(predicted, truth, void=None) -> float:
  """F: 2 P R / (P + R) of the boundaries of two masks bool [H, W].

  A pixel of one boundary counts if the other one comes within `boundary_radius`. Of two empty
  boundaries F is 1, of one it is 0. `void` as for `region`.
  """
  predicted, truth = (np.asarray(x, bool) for x in (predicted, truth))
  if void is not None:
    predicted, truth = predicted & ~void, truth & ~void
  found, true = boundary(predicted), boundary(truth)
  if not found.any() or not true.any():
    return float(not found.any() and not true.any())
  radius = boundary_radius(*truth.shape)
  offsets = np.arange(-radius, radius + 1)
  disk = (offsets[:, None]**2 + offsets**2 <= radius**2).astype(np.uint8)
  wide = lambda x: cv2.dilate(x.astype(np.uint8), disk, borderType=cv2.BORDER_CONSTANT,
                              borderValue=0).astype(bool)
  precision = (found & wide(true)).sum() / found.sum()
  recall = (true & wide(found)).sum() / true.sum()
  return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def score(predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray]
          ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
  """J and F of each object in each frame that counts: neither the first nor the last one.

  The objects are those of the first frame, 1 to its largest label; others that appear later are
  background, and so are pixels of 255.

  Args:
    predicted, truth: integers [H, W] of every frame.

  Returns:
    By object, J and F, float64 [frames - 2] each.

  Raises:
    ValueError: too few frames, other sizes or numbers of frames, an object predicted that the first
      frame does not have, or no object at all.
  """
  if len(predicted) != len(truth) or len(truth) < 3:
    raise ValueError(f"J and F need as many predicted as true masks, three or more, not "
                     f"{len(predicted)} and {len(truth)}: the first and the last do not count")
  count = int(np.where(truth[0] == VOID, 0, truth[0]).max())
  if not count:
    raise ValueError("the first frame has no object")
  result = {i: ([], []) for i in range(1, count + 1)}
  for frame, (found, true) in enumerate(zip(predicted, truth)):
    if np.shape(found) != np.shape(true):
      raise ValueError(f"the mask of frame {frame} is {np.shape(found)}, the true one "
                       f"{np.shape(true)}")
    if np.max(found) > count:
      raise ValueError(f"frame {frame} has an object {np.max(found)}, the first one has {count}")
    if 0 < frame < len(truth) - 1:
      for i, (j, f) in result.items():
        j.append(region(found == i, true == i))
        f.append(contour(found == i, true == i))
  return {i: (np.array(j), np.array(f)) for i, (j, f) in result.items()}


def figures(scores: Mapping[str, Mapping[int, tuple[np.ndarray, np.ndarray]]]) -> dict[str, float]:
  """What DAVIS reports, from 0 to 1: means over frames, then over the objects of all videos.

  Args:
    scores: by video, as from `score`.

  Returns:
    `JF`, the mean of both means, and of `J` and `F` each `_mean`, `_recall` (the share of frames
    above 0.5) and `_decay` (the mean of the first quarter of the frames less that of the last).
  """
  objects = [pair for video in scores.values() for pair in video.values()]
  result = {}
  for name, values in zip("JF", zip(*objects)):
    result |= {f"{name}_mean": float(np.mean([x.mean() for x in values])),
               f"{name}_recall": float(np.mean([(x > 0.5).mean() for x in values])),
               f"{name}_decay": float(np.mean([_decay(x) for x in values]))}
  return dict(JF=(result["J_mean"] + result["F_mean"]) / 2) | result


def _decay(values: np.ndarray) -> float:
  """Of four bins that share their edges."""
  edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
  return float(values[edges[0]:edges[1] + 1].mean() - values[edges[3]:edges[4] + 1].mean())
