"""Semantic segmentation: areas of classes, and the figures that come of them."""

import numpy as np

IGNORE = 255


def reduce_zero_label(labels) -> np.ndarray:
  """ADE20K's classes from its files: 0 (other) becomes 255, and 1 .. 150 become 0 .. 149."""
  labels = np.asarray(labels)
  return np.where((labels == 0) | (labels == IGNORE), IGNORE, labels - 1).astype(labels.dtype)


def areas(predicted, labels, num_classes: int, ignore: int = IGNORE) -> np.ndarray:
  """How many pixels each class has. Those of several images add up.

  Args:
    predicted: integers [H, W].
    labels: integers [H, W], below `num_classes` or equal to `ignore`.
    num_classes: C.
    ignore: these pixels do not count, whatever is predicted there.

  Returns:
    int64 [4, C]: of the intersection, the union, the prediction and the truth.

  Raises:
    ValueError: shapes that differ, or a label that is no class.
  """
  predicted, labels = np.asarray(predicted), np.asarray(labels)
  if predicted.shape != labels.shape:
    raise ValueError(f"the prediction is {predicted.shape}, the labels are {labels.shape}")
  counted = labels != ignore
  predicted, labels = predicted[counted].astype(np.int64), labels[counted].astype(np.int64)
  if labels.size and (labels.max() >= num_classes or labels.min() < 0):
    raise ValueError(f"label {labels.max()} is none of {num_classes} classes: were the files read "
                     "as palette indices, and is this the right data set?")
  count = lambda x: np.bincount(x, minlength=num_classes)[:num_classes]
  both, said, true = count(labels[labels == predicted]), count(predicted), count(labels)
  return np.stack([both, said + true - both, said, true])


def figures(total: np.ndarray) -> dict[str, float]:
  """The mean figures over classes, from 0 to 1.

  A class has no value where its denominator is 0, and then does not count: for the IoU that is a
  class which is neither in the truth nor predicted. One that is predicted only has an IoU of 0.

  Args:
    total: [4, C], the sum of `areas` over all images. (A mean over images is another number.)

  Returns:
    mIoU, mean accuracy `acc` (the mean recall), pixel accuracy `aAcc`, `dice`, `fscore`,
    `precision`, `recall`.
  """
  both, union, said, true = np.asarray(total, np.float64)
  with np.errstate(invalid="ignore", divide="ignore"):
    precision, recall = both / said, both / true
    per_class = dict(mIoU=both / union, acc=recall, dice=2 * both / (said + true),
                     fscore=2 * precision * recall / (precision + recall), precision=precision,
                     recall=recall)
    mean = {name: float(np.nanmean(x)) if np.isfinite(x).any() else 0.0
            for name, x in per_class.items()}
    return mean | dict(aAcc=float(both.sum() / max(true.sum(), 1)))


def iou_per_class(total: np.ndarray) -> np.ndarray:
  """float64 [C], NaN for classes that are neither in the truth nor predicted; `total` as above."""
  both, union = np.asarray(total, np.float64)[:2]
  with np.errstate(invalid="ignore"):
    return both / union
