"""Correspondence between the two images of calibrated stereo pairs (Middlebury 2014).

It is not in the paper: where NAVI cannot be had, it measures the same on real photographs.
"""

import pathlib
import re

import numpy as np

from dinov3_jax.data.decode import decode
from dinov3_jax.evals import matching, navi
from dinov3_jax.evals.drawing import matched
from dinov3_jax.evals.pca import grid
from dinov3_jax.evals.session import LayoutError, Result, Session

THRESHOLDS = (0.05, 0.1, 0.2)  # metres
LAYOUT = "SCENE/ with im0.png, im1.png, disp0.pfm and calib.txt, as Middlebury 2014 has them"


def run(session: Session) -> Result:
  """Each patch of the left image is looked for in the right one; all count, or the surest 1000."""
  scenes = session.some(sorted(path.parent for path in session.data.glob("*/calib.txt")))
  if not scenes:
    raise LayoutError(f"{session.data} has no SCENE/calib.txt: wanted is {LAYOUT}")
  recalls, cells = {}, []
  for scene in session.each(scenes, "pairs"):
    images = [decode(path, path) for path in (scene / "im0.png", scene / "im1.png")]
    rows, columns = (max(side // session.patch, 1) for side in images[0].shape[:2])
    size = rows * session.patch, columns * session.patch
    first, second = (session.patches(image[:size[0], :size[1]]).reshape(rows * columns, -1)
                     for image in images)
    points, there, calibration = scene_points(scene, rows, columns, session.patch)
    places, best, other = matching.nearest(first[there.ravel()], second)
    found = (np.stack([places % columns, places // columns], 1) + 0.5) * session.patch
    errors = distances(points[there], found, calibration)
    kinds = {"all patches": np.arange(len(errors))} | {
      f"1000 by {by}": matching.best(best, other, navi.MATCHES, by) for by in ("ratio", "cosine")}
    for kind, chosen in kinds.items():
      recalls.setdefault(kind, []).append(
        [matching.recall(errors[chosen], limit) for limit in THRESHOLDS])
    shown = np.linspace(0, len(errors) - 1, 40).astype(int)
    own = np.flatnonzero(there.ravel())[shown]
    source = (np.stack([own % columns, own // columns], 1) + 0.5) * session.patch
    cells.append([matched(*images, source, found[shown], errors[shown] < THRESHOLDS[-1])])
  return Result(
    {f"recall at {round(100 * limit)} cm, {kind}": 100 * float(np.mean([r[i] for r in own]))
     for kind, own in recalls.items() for i, limit in enumerate(THRESHOLDS)},
    dict(scenes=len(scenes), thresholds=list(THRESHOLDS)), ["the paper has no such task"],
    pictures={"matches.png": grid(cells[:4], columns=1)})


def read_pfm(path: pathlib.Path) -> np.ndarray:
  """The values of a PFM file, float32 [H, W], the uppermost row first.

  Raises:
    LayoutError: another file.
  """
  found = re.match(rb"Pf\s+(\d+)\s+(\d+)\s+(-?[\d.]+)\s", path.read_bytes()[:100])
  if not found:
    raise LayoutError(f"{path} is no PFM file of one channel")
  width, height, scale = int(found[1]), int(found[2]), float(found[3])
  values = np.frombuffer(path.read_bytes()[found.end():], "<f4" if scale < 0 else ">f4")
  if values.size != width * height:
    raise LayoutError(f"{path} says {width} x {height}, but holds {values.size} values")
  return values.reshape(height, width)[::-1].astype(np.float32)


def read_calibration(path: pathlib.Path) -> dict[str, float]:
  """`focal`, `x` and `y` of the left camera and `doffs`, in pixels, and `baseline`, millimetres.

  Raises:
    LayoutError: another file.
  """
  values = dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
  try:
    (focal, _, x), (_, _, y), _ = (row.split() for row in values["cam0"].strip("[] ").split(";"))
    return dict(focal=float(focal), x=float(x), y=float(y), doffs=float(values["doffs"]),
                baseline=float(values["baseline"]))
  except (KeyError, ValueError) as error:
    raise LayoutError(f"{path} is no calibration of Middlebury: {error}") from error


def scene_points(scene: pathlib.Path, rows: int, columns: int, patch: int
                 ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
  """The points at the middle of the left image's patches, in metres in its camera's frame, float64
  [rows, columns, 3], where there is one, bool [rows, columns], and the calibration.

  Raises:
    LayoutError: files that are not those of Middlebury.
  """
  calibration = read_calibration(scene / "calib.txt")
  if not (scene / "disp0.pfm").exists():
    raise LayoutError(f"{scene} has no disp0.pfm: wanted is {LAYOUT}")
  disparity = read_pfm(scene / "disp0.pfm")
  y, x = (np.mgrid[:rows, :columns] + 0.5) * patch
  own = disparity[y.astype(int), x.astype(int)]
  there = np.isfinite(own) & (own + calibration["doffs"] > 0)
  return triangulate(x, y, np.where(there, own, 1), calibration), there, calibration


def triangulate(x, y, disparity, calibration: dict[str, float]) -> np.ndarray:
  """Points [..., 3] in metres of places in the left image and their disparities, in pixels."""
  depth = calibration["focal"] * calibration["baseline"] / 1000 / (
    disparity + calibration["doffs"])
  return np.stack([(x - calibration["x"]) * depth / calibration["focal"],
                   (y - calibration["y"]) * depth / calibration["focal"], depth], -1)


def distances(points: np.ndarray, found: np.ndarray, calibration: dict[str, float]) -> np.ndarray:
  """How far points [n, 3] lie from where their matches say, in metres.

  A place in the right image is a ray. Its point is the one at the depth of the true point: an error
  across the ray counts, as NAVI's errors of points at about the same depth do.

  Args:
    found: (x, y) in the right image, [n, 2], pixels.
  """
  depth = points[:, 2]
  x = (found[:, 0] - calibration["x"] - calibration["doffs"]) * depth / calibration["focal"]
  y = (found[:, 1] - calibration["y"]) * depth / calibration["focal"]
  return np.hypot(points[:, 0] - calibration["baseline"] / 1000 - x, points[:, 1] - y)
