"""Figures of merit of classifiers, with one label an image or several. Shares from 0 to 1."""

import numpy as np


def top_k(logits, k: int) -> np.ndarray:
  """The k classes of the largest logits, largest first; of equal ones the smaller class.

  Args:
    logits: [N, C].
    k: how many; cut to C.

  Returns:
    int [N, min(k, C)].
  """
  return np.argsort(-np.asarray(logits), axis=1, kind="stable")[:, :k]


def accuracy(logits, labels, k: int = 1) -> float:
  """The share of images whose label is among the k largest logits.

  Args:
    logits: [N, C].
    labels: integers [N].
    k: of top-k.

  Raises:
    ValueError: shapes that do not fit, or labels out of range.
  """
  logits, labels = _checked(logits, labels)
  return float((top_k(logits, k) == labels[:, None]).any(1).mean())


def accuracy_per_class(logits, labels, k: int = 1) -> float:
  """The mean over classes of each one's top-k accuracy.

  As torchmetrics' macro average has it, and so the reference: at k = 1 a class that no image has
  but that is predicted counts as 0; at larger k it is left out. A class that is neither is left
  out. Arguments and errors as of `accuracy`.
  """
  logits, labels = _checked(logits, labels)
  found = top_k(logits, k)
  classes = np.union1d(labels, found) if k == 1 else np.unique(labels)
  hit = (found == labels[:, None]).any(1)
  return float(np.mean([hit[labels == c].mean() if (labels == c).any() else 0 for c in classes]))


def f1_per_class(logits, labels) -> float:
  """The mean of 2 TP / (2 TP + FP + FN) over the classes that are labels or are predicted.

  Arguments and errors as of `accuracy`.
  """
  logits, labels = _checked(logits, labels)
  found = top_k(logits, 1)[:, 0]
  return float(np.mean([_f1(found == c, labels == c) for c in np.union1d(labels, found)]))


def accuracy_any(logits, labels, k: int = 1) -> tuple[float, int]:
  """The share of images with one of their own labels among the k largest logits.

  This is the rule of ImageNet-ReaL (Beyer et al. 2020): images without any label do not count.

  Args:
    logits: [N, C].
    labels: for each image a list of classes; negative entries are padding.
    k: of top-k.

  Returns:
    The share, and the number of images that count.

  Raises:
    ValueError: there are not as many lists as logits, or no list has a label.
  """
  if len(logits) != len(labels):
    raise ValueError(f"there are {len(logits)} logits, but {len(labels)} lists of labels")
  sets = [{int(c) for c in own if c >= 0} for own in labels]
  hits = [bool(own & set(found.tolist())) for own, found in zip(sets, top_k(logits, k)) if own]
  if not hits:
    raise ValueError("no image has a label")
  return float(np.mean(hits)), len(hits)


def average_precision(scores, labels) -> float:
  """The step sum of precision over recall, sum_i (R_i - R_(i-1)) P_i, at each distinct score.

  Args:
    scores: [N], larger is surer.
    labels: bool or 0/1 [N].

  Returns:
    From 0 to 1; 0 where no label is positive.
  """
  precision, recall = _curve(scores, labels)
  return float((np.diff(recall, prepend=0) * precision).sum())


def average_precision_voc2007(scores, labels) -> float:
  """The 11-point average precision of PASCAL VOC 2007, as the reference computes it.

  It is the mean over r = 0, 0.1 .. 1 of the largest precision at a recall of at least r. The curve
  has the point of recall 0 and precision 1, so that the term of r = 0 is always 1, and recalls are
  compared in float32, which decides at the edges. Arguments and result as of `average_precision`.
  """
  precision, recall = _curve(scores, labels)
  precision, recall = np.append(precision, 1), np.append(recall, 0).astype(np.float32)
  points = np.linspace(0, 1, 11).astype(np.float32)
  return float(np.mean([precision[recall >= r].max(initial=0) for r in points]))


def multilabel_f1(scores, labels, threshold: float = 0.5) -> tuple[float, float]:
  """F1 of several labels an image.

  Args:
    scores: [N, C].
    labels: bool or 0/1 [N, C].
    threshold: a score above it says yes.

  Returns:
    F1 over all entries together (micro), and its mean over classes (macro).
  """
  said, true = np.asarray(scores) > threshold, np.asarray(labels).astype(bool)
  return _f1(said, true), float(np.mean([_f1(s, t) for s, t in zip(said.T, true.T)]))


def confusion(predicted, labels, num_classes: int) -> np.ndarray:
  """How often each class (row) was taken for each class (column): int64 [C, C]."""
  index = np.asarray(labels, np.int64) * num_classes + np.asarray(predicted, np.int64)
  return np.bincount(index.ravel(), minlength=num_classes**2).reshape(num_classes, num_classes)


def _f1(said: np.ndarray, true: np.ndarray) -> float:
  both = said.sum() + true.sum()
  return float(2 * (said & true).sum() / both) if both else 0.0


def _curve(scores, labels) -> tuple[np.ndarray, np.ndarray]:
  """Precision and recall when all above each distinct score are taken, from the largest down."""
  scores, labels = np.asarray(scores), np.asarray(labels).astype(bool)
  order = np.argsort(-scores, kind="stable")
  last = np.append(np.diff(scores[order]) != 0, True)
  true = np.cumsum(labels[order])[last]
  return true / (np.flatnonzero(last) + 1), true / max(labels.sum(), 1)


def _checked(logits, labels) -> tuple[np.ndarray, np.ndarray]:
  logits, labels = np.asarray(logits), np.asarray(labels)
  if logits.ndim != 2 or labels.shape != (len(logits),) or not len(labels):
    raise ValueError(f"logits must be [N, C] and labels [N] with N > 0, not {logits.shape} and "
                     f"{labels.shape}")
  if labels.min() < 0 or labels.max() >= logits.shape[1]:
    raise ValueError(f"labels must lie between 0 and {logits.shape[1] - 1}, not between "
                     f"{labels.min()} and {labels.max()}")
  return logits, labels
