"""Geometric correspondence on NAVI, after Probe3D (El Banani et al., CVPR 2024)."""

from typing import Any

import numpy as np

from dinov3_jax.evals import matching
from dinov3_jax.losses.gram import bicubic_downsample

MATCHES = 1000  # the surest ones of a pair count
THRESHOLDS = (0.01, 0.02, 0.05)  # metres; the paper's figure is the mean of the three recalls
SCALE = 65535 * 10  # a depth file holds SCALE / depth in millimetres, 0 where there is none


def depth_millimetres(values) -> np.ndarray:
  """Depth of the 16-bit values of NAVI's files, float32 in millimetres; 0 where there is none."""
  values = np.asarray(values, np.float64)
  return np.where(values > 0, SCALE / np.maximum(values, 1), 0).astype(np.float32)


def camera_pose(annotation: dict[str, Any]) -> np.ndarray:
  """From the object to the camera, float64 [4, 4].

  Args:
    annotation: its `camera` has the quaternion `q` (w, x, y, z) and `t` in millimetres.
  """
  w, x, y, z = np.asarray(annotation["camera"]["q"]) / np.linalg.norm(annotation["camera"]["q"])
  pose = np.eye(4)
  pose[:3, :3] = [
    [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]]
  pose[:3, 3] = annotation["camera"]["t"]
  return pose


def relative_angle(first: np.ndarray, second: np.ndarray) -> float:
  """The angle between two poses' rotations, in degrees."""
  trace = np.trace(first[:3, :3].T @ second[:3, :3])
  return float(np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1))))


def object_crop(mask) -> tuple[int, int, int]:
  """A square around an object: (top, left, side), within the image.

  It is Probe3D's: the side is the distance between the object's outermost pixels along its longer
  axis, so that one row and column of them may be cut off, and the last row and column of the image
  are never part of it.

  Args:
    mask: bool [H, W].

  Raises:
    ValueError: an empty mask.
  """
  rows, columns = (np.flatnonzero(np.asarray(mask).any(axis)) for axis in (1, 0))
  if not len(rows):
    raise ValueError("the view shows no pixel of the object")
  side = int(min(max(np.ptp(rows), np.ptp(columns), 1), *(n - 1 for n in mask.shape)))
  start = lambda own, length: int(
      min(max((own[0] + own[-1]) // 2 - side // 2, 0), length - 1 - side))
  return start(rows, mask.shape[0]), start(columns, mask.shape[1]), side


def correspond(source, target, source_xyz, target_xyz, count: int = MATCHES, by: str = "ratio"
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The surest matches of two views, in 3D.

  Features are resized to the grid of points, bicubic without antialiasing; those of points without
  depth are left out.

  Args:
    source, target: patches [h, w, D].
    source_xyz, target_xyz: points [H, W, 3] in each camera's frame, z = 0 where there is none.
    count: how many matches.
    by: as for `matching.best`.

  Returns:
    The matched points of both views, [n, 3] each, and the weight of each match, float32 [n].
  """
  features, points = [], []
  for patches, xyz in ((source, source_xyz), (target, target_xyz)):
    patches, xyz = np.asarray(patches, np.float32), np.asarray(xyz)
    there = xyz[..., 2] > 0
    features.append(np.asarray(bicubic_downsample(patches[None], xyz.shape[:2])[0])[there])
    points.append(xyz[there])
  places, first, second = matching.nearest(*features)
  chosen = matching.best(first, second, count, by)
  weight = (first if by == "cosine" else matching.ratio(first, second))[chosen]
  return points[0][chosen], points[1][places[chosen]], weight


def errors(source, target, transform, intrinsics=None) -> tuple[np.ndarray, np.ndarray | None]:
  """How far matched points lie apart once the source's are moved into the target's frame.

  Args:
    source, target: points [n, 3].
    transform: [3, 4] or [4, 4], from the source's to the target's camera.
    intrinsics: [3, 3]; None: no errors in pixels.

  Returns:
    Distances [n] in the unit of the points, and in pixels of the target view.
  """
  moved = source @ transform[:3, :3].T + transform[:3, 3]
  pixels = None
  if intrinsics is not None:
    project = lambda x: (x @ intrinsics.T)[:, :2] / (x @ intrinsics.T)[:, 2:]
    pixels = np.linalg.norm(project(moved) - project(target), axis=1)
  return np.linalg.norm(moved - target, axis=1), pixels
