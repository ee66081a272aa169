"""The Met data set (Ypsilantis et al., NeurIPS 2021): whitening, a k-NN classifier, and GAP."""

import dataclasses
from collections.abc import Sequence

import numpy as np

# The grid that the validation set chooses from, as in the original code.
KS = (1, 2, 3, 5, 7, 10, 15, 20, 50)
TAUS = (0.01, 0.1, 1, 5, 10, 15, 20, 25, 30, 50, 100, 500)


@dataclasses.dataclass(frozen=True)
class Whitening:
  """Principal components of variance 1; see `fit_whitening`."""

  mean: np.ndarray  # [D]
  axes: np.ndarray  # [D, K], each divided by its deviation

  def __call__(self, features) -> np.ndarray:
    """Features [N, D] as unit vectors [N, K]."""
    return _unit((np.asarray(features, np.float64) - self.mean) @ self.axes)


def fit_whitening(features, dims: int) -> Whitening:
  """PCA whitening, from the features of the training set.

  Args:
    features: [N, D].
    dims: the largest components that are kept, at most D and below N.

  Raises:
    ValueError: too many dimensions for these features.
  """
  features = np.asarray(features, np.float64)
  if not 1 <= dims <= min(features.shape[1], len(features) - 1):
    raise ValueError(f"{len(features)} features of {features.shape[1]} dimensions cannot be "
                     f"whitened to {dims}")
  mean = features.mean(0)
  centred = features - mean
  variance, axes = np.linalg.eigh(centred.T @ centred / len(features))
  variance, axes = variance[::-1][:dims], axes[:, ::-1][:, :dims]
  if variance[-1] <= 1e-12 * variance[0]:
    raise ValueError(f"the features span fewer than {dims} dimensions: whiten to fewer")
  return Whitening(mean, axes / np.sqrt(variance))


def classify(bank, labels, queries, k: int, tau: float, num_classes: int | None = None
             ) -> tuple[np.ndarray, np.ndarray]:
  """The class of each query, and how sure it is.

  A class scores its best cosine among the k nearest, at least 0; the confidence is the largest
  entry of softmax(tau * score) over all classes, where those that were not found score 0.

  Args:
    bank: unit vectors [N, D].
    labels: their classes, integers [N] of at least 0.
    queries: unit vectors [M, D].
    k: nearest neighbours; cut to N.
    tau: inverse temperature.
    num_classes: None takes the number of different labels.

  Returns:
    int64 and float64 [M].
  """
  return _vote(*_nearest(bank, labels, queries, k), k, tau,
               len(np.unique(labels)) if num_classes is None else num_classes)


def gap(predicted, confidence, labels) -> float:
  """The global average precision: micro-AP over all queries, the surest first.

  Sum over right predictions of the precision down to each, divided by the number of queries that
  have a label. Queries without (-1, distractors) stand in the ranking, but are never right.

  Args:
    predicted: int [M].
    confidence: [M].
    labels: int [M], -1 for distractors.

  Raises:
    ValueError: no query has a label.
  """
  predicted, labels = np.asarray(predicted), np.asarray(labels)
  count = (labels >= 0).sum()
  if not count:
    raise ValueError("no query has a label")
  order = np.argsort(-np.asarray(confidence), kind="stable")
  right = ((predicted == labels) & (labels >= 0))[order]
  return float((np.cumsum(right) / np.arange(1, len(right) + 1) * right).sum() / count)


def figures(predicted, confidence, labels) -> dict[str, float]:
  """`gap`, `gap_minus` (without distractors) and `accuracy` (likewise), from 0 to 1."""
  predicted, confidence, labels = map(np.asarray, (predicted, confidence, labels))
  own = labels >= 0
  return dict(gap=gap(predicted, confidence, labels),
              gap_minus=gap(predicted[own], confidence[own], labels[own]),
              accuracy=float((predicted[own] == labels[own]).mean()))


def tune(bank, labels, queries, query_labels, ks: Sequence[int] = KS, taus: Sequence[float] = TAUS
         ) -> tuple[int, float, np.ndarray]:
  """The k and tau of the largest GAP on the validation set; of equal ones the first.

  Large taus make many confidences equal, and then the order of the queries decides.

  Returns:
    k, tau, and the GAP of each pair, [len(ks), len(taus)].
  """
  nearest = _nearest(bank, labels, queries, max(ks))
  classes = len(np.unique(labels))
  table = np.array([[gap(*_vote(*nearest, k, tau, classes), query_labels) for tau in taus]
                    for k in ks])
  row, column = np.unravel_index(table.argmax(), table.shape)
  return ks[row], taus[column], table


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _nearest(bank, labels, queries, k: int) -> tuple[np.ndarray, np.ndarray]:
  """Cosines and classes of the k nearest, [M, k] each, nearest first; queries in blocks."""
  bank, queries, labels = np.asarray(bank), np.asarray(queries), np.asarray(labels)
  k = min(k, len(bank))
  cosines, classes = [], []
  for start in range(0, len(queries), 256):
    block = queries[start:start + 256] @ bank.T
    index = np.argpartition(-block, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(block, index, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    cosines.append(np.take_along_axis(values, order, 1))
    classes.append(labels[np.take_along_axis(index, order, 1)])
  return np.concatenate(cosines), np.concatenate(classes)


def _vote(cosines, classes, k: int, tau: float, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
  cosines, classes = np.maximum(cosines[:, :k], 0), classes[:, :k]
  # The nearest of each class is the first one in its row: it alone carries the class's score.
  first = ~(np.tril(classes[:, :, None] == classes[:, None, :], -1).any(2))
  logits = np.where(first, tau * cosines, -np.inf)
  top = np.maximum(logits.max(1), 0)
  others = num_classes - first.sum(1)
  total = np.exp(logits - top[:, None]).sum(1) + others * np.exp(-top)
  return classes[np.arange(len(classes)), logits.argmax(1)], np.exp(logits.max(1) - top) / total
