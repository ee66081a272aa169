"""Object discovery by TokenCut (Wang et al., CVPR 2022): a normalised cut of an image's patches."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import linalg, ndimage

EPSILON = 1e-5  # the weight of patches that are not similar
TAUS = tuple(i / 20 for i in range(9))  # paper D.4: 0 to 0.4 by 0.05; the best one is reported


@dataclasses.dataclass(frozen=True)
class Cut:
  """Attributes:
    foreground: bool [h, w], one side of the cut.
    component: bool [h, w], its part around the most salient patch: the object.
    eigenvector: float64 [h, w], positive towards the foreground.
  """

  foreground: np.ndarray
  component: np.ndarray
  eigenvector: np.ndarray

  def box(self, patch: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the object in pixels, within an image of this size."""
    rows, columns = np.nonzero(self.component)
    end = lambda places, side: min((int(places.max()) + 1) * patch, side)
    return (int(columns.min()) * patch, int(rows.min()) * patch, end(columns, width),
            end(rows, height))


def cut(features, tau: float, weighted: bool = False) -> Cut:
  """Separates an image's patches in two by their similarities, and takes the salient part.

  The edges are 1 where the cosine of two patches is above tau, else 1e-5; the cut is the second
  generalised eigenvector of (D - W, D), by its mean. The foreground is the side of the patch of
  largest magnitude, the seed; the object is its component over the four neighbours. With binary
  edges many patches may tie for the seed; then rounding chooses one, and where they lie in several
  components, the object is any of these.

  Args:
    features: [h, w, D].
    tau: threshold of cosines.
    weighted: edges above tau keep the cosine as their weight.

  Raises:
    ValueError: features that are not finite, or a single patch.
  """
  features = np.asarray(features, np.float64)
  rows, columns, dims = features.shape
  if rows * columns < 2 or not np.isfinite(features).all():
    raise ValueError(f"TokenCut needs finite features of two patches or more, not {features.shape}")
  x = features.reshape(-1, dims)
  x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  cosine = x @ x.T
  edges = np.where(cosine > tau, cosine if weighted else 1.0, EPSILON)
  degrees = edges.sum(1)
  _, vectors = linalg.eigh(np.diag(degrees) - edges, np.diag(degrees), subset_by_index=[1, 1])
  vector = vectors[:, 0]
  above = vector > vector.mean()
  seed = np.abs(vector).argmax()
  if not above[seed]:
    above, vector = ~above, -vector
  foreground = above.reshape(rows, columns)
  parts, _ = ndimage.label(foreground)
  return Cut(foreground, parts == parts.ravel()[seed], vector.reshape(rows, columns))


def iou(box: Sequence[float], others) -> np.ndarray:
  """The intersection over union of a box with others [N, 4]; left, top, right, bottom."""
  others = np.asarray(others, np.float64).reshape(-1, 4)
  sides = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(0)
  area = lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
  shared = sides.prod(1)
  return shared / (area(np.asarray(box, np.float64)) + area(others) - shared)


def corloc(boxes: Sequence[Sequence[float]], truth: Sequence) -> float:
  """The share of images whose box has an IoU above 0.5 with any true one, from 0 to 1.

  Args:
    boxes: one an image.
    truth: of each image, boxes [N, 4].

  Raises:
    ValueError: as many boxes as images are not there, or there is none.
  """
  if len(boxes) != len(truth) or not len(boxes):
    raise ValueError(f"there are {len(boxes)} boxes for {len(truth)} images")
  return float(np.mean([(iou(box, own) > 0.5).any() for box, own in zip(boxes, truth)]))


def voc_boxes(objects: Sequence[dict], hard: bool = True) -> list[list[int]]:
  """Boxes of VOC's annotations: their left and top are counted from 1 there, from 0 here.

  Args:
    objects: dicts with `bndbox`, `truncated` and `difficult`.
    hard: keep truncated and difficult ones, as the protocol does.
  """
  kept = [o for o in objects
          if hard or not (int(o.get("truncated", 0)) or int(o.get("difficult", 0)))]
  sides = lambda o: [int(float(o["bndbox"][name])) for name in ("xmin", "ymin", "xmax", "ymax")]
  return [[left - 1, top - 1, right, bottom]
          for left, top, right, bottom in map(sides, kept)]


def coco_boxes(annotations: Sequence[dict]) -> list[list[int]]:
  """Boxes of COCO's annotations, corners rounded; crowds are left out."""
  return [[round(x), round(y), round(x + width), round(y + height)]
          for x, y, width, height in (a["bbox"] for a in annotations if not a.get("iscrowd"))]
