"""Linear depth on KITTI, Eigen's split: RMSE in metres."""

import pathlib
from functools import partial

import numpy as np

from dinov3_jax.evals import depth, depth_maps
from dinov3_jax.evals.depth_maps import DepthSet, Pairs
from dinov3_jax.evals.session import LayoutError, Result, Session

FARTHEST, UNIT = 80.0, 256  # metres; steps of the files a metre
FRAME, CROP = (352, 1216), (352, 704)  # what is looked at of an image, and of that in training
LISTS = ("eigen_train_files_with_gt.txt", "eigen_test_files_with_gt.txt")
LAYOUT = (f"{LISTS[0]} and {LISTS[1]} with lines of an image, its depth (or None) and a focal "
          "length, as BTS has them, the drives below raw/, and data_depth_annotated/")
PAPER = {"vit7b16": {"RMSE": 2.346}}  # table 3, metres


def run(session: Session) -> Result:
  """The paper's grid of rates and decays; the best probe by the RMSE of the test set.

  What the paper does not say is done by convention: Eigen's lists, the lower middle of 352 x 1216,
  Garg's region, and depth up to 80 m.
  """
  train, test = (read_list(session, name) for name in LISTS)
  result = depth_maps.evaluate(session, DepthSet(
    train, test, partial(depth_maps.read_depth, unit=UNIT), FARTHEST, depth.garg_crop, window,
    lower_middle))
  result.protocol |= dict(region="Garg", frame=list(FRAME))
  result.differs.insert(0, "the paper does not say its region, its crop and its number of steps: "
                        "Garg's, 352 x 1216 and those of NYUv2 are taken")
  result.paper = PAPER
  return result


def window(height: int, width: int) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
  """Training crops lie anywhere in an image, as high as it is."""
  return (0, height, 0, width), (min(CROP[0], height), min(CROP[1], width))


def lower_middle(image: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The lowest 352 rows and the middle 1216 columns; images of KITTI are of several sizes."""
  height, width = truth.shape
  top, left = max(height - FRAME[0], 0), max(width - FRAME[1], 0) // 2
  return tuple(x[top:, left:left + FRAME[1]] for x in (image, truth))


def read_list(session: Session, name: str) -> Pairs:
  """The images of a list that have depth, and their depth files.

  KITTI's annotated depth comes in the folders train and val; they may also lie together.

  Raises:
    LayoutError: a line of another form, or a file that is not there.
  """
  pairs = []
  roots = [session.path("data_depth_annotated", LAYOUT) / part for part in ("train", "val", "")]
  for line in session.path(name, LAYOUT).read_text().splitlines():
    columns = line.split()
    if not columns:
      continue
    if len(columns) < 2:
      raise LayoutError(f"{name} has a line {line!r}: wanted is {LAYOUT}")
    if columns[1] != "None":
      image, found = session.data / "raw" / columns[0], _first(roots, columns[1])
      for path in (image, found):
        if not path.exists():
          raise LayoutError(f"{path} is in {name}, but it is not there")
      pairs.append((image, found))
  if not pairs:
    raise LayoutError(f"{name} names no images with depth: wanted is {LAYOUT}")
  return pairs


def _first(roots: list[pathlib.Path], name: str) -> pathlib.Path:
  return next((root / name for root in roots if (root / name).exists()), roots[-1] / name)
