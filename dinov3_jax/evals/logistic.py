"""Multinomial logistic regression on frozen features, and the choice of its strength.

The objective is scikit-learn's, which the reference calls: C sum_i CE_i + |W|^2 / 2, with biases
that are not penalised. Of two classes, scikit-learn has one row of coefficients w, the difference
of the two: C sum_i CE_i + |w|^2 / 2. Both are strictly convex in what the probabilities depend on,
so any solver that converges gives the same classifier; here it is SciPy's L-BFGS in float64.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special

CS = tuple(np.logspace(-6, 5, 45).tolist())  # the reference's grid
ITERATIONS = 1000  # of a fit, as in the reference
TOLERANCE = 1e-12  # of the largest entry of the gradient, as in the reference
PRECISION = 64 * np.finfo(np.float64).eps  # of the objective: what its rounding leaves to win


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A linear classifier.

  Attributes:
    classes: the labels, int64 [K], ascending.
    coefficients: float64 [K, D].
    intercepts: float64 [K]; they sum to 0.
  """

  classes: np.ndarray
  coefficients: np.ndarray
  intercepts: np.ndarray

  def logits(self, features) -> np.ndarray:
    """float64 [N, K] of features [N, D]."""
    return np.asarray(features, np.float64) @ self.coefficients.T + self.intercepts

  def probabilities(self, features) -> np.ndarray:
    """float64 [N, K] of features [N, D]."""
    return special.softmax(self.logits(features), axis=1)

  def predict(self, features) -> np.ndarray:
    """The labels of features [N, D], int64 [N]."""
    return self.classes[self.logits(features).argmax(1)]


def fit(features, labels, C: float, start: Classifier | None = None) -> Classifier:
  """The logistic regression of the strength C.

  Args:
    features: [N, D]; they are neither scaled nor normalised.
    labels: integers [N] of two or more values.
    C: weight of the data against |W|^2 / 2; scikit-learn's.
    start: a fit of the same classes to begin with, which saves time and changes nothing else.

  Raises:
    ValueError: shapes that do not fit, features that are not finite, only one class, or a C that is
      not positive.
  """
  x, labels = np.asarray(features, np.float64), np.asarray(labels)
  if x.ndim != 2 or labels.shape != (len(x),) or not np.isfinite(x).all():
    raise ValueError(f"logistic regression needs finite features [N, D] and labels [N], not "
                     f"{x.shape} and {labels.shape}")
  if not C > 0:
    raise ValueError(f"C must be positive, not {C}")
  classes, y = np.unique(labels, return_inverse=True)
  if len(classes) < 2:
    raise ValueError("logistic regression needs two classes or more, there is one")
  count, dims = len(classes), x.shape[1]
  truth = np.zeros((len(x), count))
  truth[np.arange(len(x)), y] = 1
  # The objective over N C, which is of the order of 1 at any C. Two rows w/2 and -w/2 have the
  # penalty |w|^2 / 4, so that of two classes counts twice.
  scale = (2 if count == 2 else 1) / (C * len(x))

  def objective(flat):
    w, b = flat[:-count].reshape(count, dims), flat[-count:]
    logits = x @ w.T + b
    total = special.logsumexp(logits, axis=1)
    loss = (total - logits[np.arange(len(x)), y]).mean() + scale / 2 * np.square(w).sum()
    residual = (np.exp(logits - total[:, None]) - truth) / len(x)
    return loss, np.concatenate([(residual.T @ x + scale * w).ravel(), residual.sum(0)])

  begin = (np.zeros(count * dims + count) if start is None else
           np.concatenate([start.coefficients.ravel(), start.intercepts]))
  found = optimize.minimize(objective, begin, jac=True, method="L-BFGS-B", options=dict(
      maxiter=ITERATIONS, maxfun=10 * ITERATIONS, ftol=PRECISION, gtol=TOLERANCE, maxls=50))
  w, b = found.x[:-count].reshape(count, dims), found.x[-count:]
  return Classifier(classes, w, b - b.mean())


def fit_binary(features, labels, C: float) -> Classifier:
  """The logistic regression of one class against the rest, with one row of coefficients.

  Its objective is C sum_i log(1 + exp(-y_i z_i)) + |w|^2 / 2, that of `fit`.

  Args:
    features: [N, D].
    labels: bool or 0/1 [N], of both kinds.
    C: as for `fit`.

  Returns:
    The classes 0 and 1; the row of 0 is zero, so that its logit is 0.
  """
  labels = np.asarray(labels).astype(np.int64)
  if len(np.unique(labels)) != 2:
    raise ValueError("a class against the rest needs images of both")
  both = fit(features, labels, C)
  w, b = both.coefficients[1] - both.coefficients[0], both.intercepts[1] - both.intercepts[0]
  return Classifier(np.arange(2), np.stack([np.zeros_like(w), w]), np.array([0, b]))


def split(labels, share: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """The reference's choice of a validation set.

  All images are shuffled; of each class the first floor(share n), at least one, are for validation.
  A class of one image stays in the training set.

  Args:
    labels: integers [N].
    share: of each class.
    seed: of the shuffle, which is `torch.randperm`'s.

  Returns:
    Places of the training and of the validation images, int64.
  """
  labels = np.asarray(labels)
  order = _randperm(len(labels), seed)
  chosen = []
  for c in np.unique(labels):
    own = order[labels[order] == c]
    chosen.append(own[:max(int(share * len(own)), 1) if len(own) > 1 else 0])
  validation = np.concatenate(chosen)
  return np.setdiff1d(order, validation), np.sort(validation)


def choose(features, labels, fitting, validation, cs: Sequence[float] = CS
           ) -> tuple[float, np.ndarray, Classifier]:
  """The C of the best validation accuracy, and the fit to all images with it.

  Of equally good ones the smallest wins.

  Args:
    features, labels: as for `fit`.
    fitting, validation: places, as from `split`.
    cs: ascending.

  Returns:
    The best C, the accuracies [len(cs)] from 0 to 1, and the classifier.

  Raises:
    ValueError: there are no validation images, or as `fit`.
  """
  if not len(validation):
    raise ValueError("C is chosen on images that are left out of the fit, and there are none: at "
                     "least one class needs two images (or a larger --limit)")
  features, labels = np.asarray(features, np.float64), np.asarray(labels)
  accuracies, model = [], None
  for C in cs:
    model = fit(features[fitting], labels[fitting], C, model)
    accuracies.append((model.predict(features[validation]) == labels[validation]).mean())
  best = cs[int(np.argmax(accuracies))]
  return best, np.array(accuracies), fit(features, labels, best)


def _randperm(count: int, seed: int) -> np.ndarray:
  """torch.randperm(count) after torch.manual_seed(seed), on the CPU, below 2^32 / 20 entries.

  It is a Fisher-Yates shuffle from the front, by the raw 32-bit numbers of the Mersenne twister.
  """
  numbers = np.random.RandomState(seed).randint(0, 2**32, count, np.uint32)
  order = np.arange(count)
  for i in range(count - 1):
    j = i + int(numbers[i]) % (count - i)
    order[i], order[j] = order[j], order[i]
  return order
