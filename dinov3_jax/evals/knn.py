"""Weighted k-nearest neighbours: the quality of frozen features with nothing to train."""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

SIMILARITIES = 2**25  # entries of the query-by-bank matrix that stand in memory at once: 128 MB


def _normalize(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.float32)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _votes(bank, bank_labels, x, temperature, ks, num_classes, skip=0):
  """What each class gets from the first k neighbours, for each k: a list of [M, C].

  `bank` is normalised already; the `skip` nearest neighbours do not vote.
  """
  similarities = jnp.matmul(_normalize(x), bank.T, precision="float32")
  nearest, index = jax.lax.top_k(similarities, ks[-1] + skip)
  weights = jax.nn.softmax(nearest[:, skip:] / temperature, axis=-1)
  neighbours = bank_labels[index[:, skip:]]
  rows = jnp.arange(len(x))[:, None]
  votes = [jnp.zeros((len(x), num_classes))]
  for start, stop in zip((0, *ks), ks):
    votes.append(votes[-1].at[rows, neighbours[:, start:stop]].add(weights[:, start:stop]))
  return votes[1:]


@partial(jax.jit, static_argnames=("ks", "num_classes", "chunk"))
def _ranks(bank, bank_labels, queries, labels, temperature, *, ks, num_classes, chunk):
  """The rank (0 = voted first) of each query's own label, for each k: int32 [len(ks), M]."""
  bank = _normalize(bank)

  def rank(chunk_of_queries):
    x, y = chunk_of_queries
    ranks = []
    for votes in _votes(bank, bank_labels, x, temperature, ks, num_classes):
      own = votes[jnp.arange(len(x))[:, None], y[:, None]]
      # Among equal votes the smaller label goes first: a collapsed network earns nothing by ties.
      ahead = (votes > own) | ((votes == own) & (jnp.arange(num_classes) < y[:, None]))
      ranks.append(ahead.sum(-1))
    return jnp.stack(ranks)

  count = len(queries)
  padding = -count % chunk
  x = jnp.pad(queries, ((0, padding), (0, 0))).reshape(-1, chunk, queries.shape[1])
  y = jnp.pad(labels, (0, padding)).reshape(-1, chunk)
  ranks = jax.lax.map(rank, (x, y))
  return ranks.transpose(1, 0, 2).reshape(len(ks), -1)[:, :count]


def knn_accuracy(train_features, train_labels, test_features, test_labels,
                 k: int | Sequence[int] = (10, 20), temperature: float = 0.07,
                 num_classes: int | None = None) -> dict[int, dict[str, float]]:
  """Accuracy of a vote among the nearest training features.

  Features are L2-normalised and compared by cosine. The `max(k)` nearest neighbours are weighted by
  the softmax of similarity / temperature, once, and each k sums the first k of these weights per
  class, as in the reference. All is in float32, whatever the features' dtype.

  Args:
    train_features: the bank, [N, D].
    train_labels: integers [N], at least 0.
    test_features: the queries, [M, D]; none of them may be in the bank.
    test_labels: integers [M], at least 0.
    k: how many neighbours vote; several are answered in one pass. One above N is cut to N, as in
      the reference.
    temperature: of the softmax.
    num_classes: None takes the largest label + 1.

  Returns:
    `{k: {"top1": ..., "top5": ...}}`, shares of the queries from 0 to 1, by each k as given.

  Raises:
    ValueError: on shapes that do not fit, on labels out of range, on k below 1, and on features
      that are not finite.
  """
  asked = sorted({int(n) for n in np.atleast_1d(k)})
  train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
  for name, x, y in (("train", train_features, train_labels), ("test", test_features, test_labels)):
    if np.ndim(x) != 2 or y.shape != (len(x),) or not len(x):
      raise ValueError(f"k-NN needs {name} features [N, D] and labels [N] with N > 0, not "
                       f"{np.shape(x)} and {y.shape}")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
      raise ValueError(f"k-NN needs {name} labels that are integers of at least 0; leave out "
                       "the images without a label")
    if not bool(jnp.isfinite(jnp.asarray(x)).all()):
      raise ValueError(f"the {name} features of the k-NN are not all finite")
  if train_features.shape[1] != test_features.shape[1]:
    raise ValueError(f"the train features have {train_features.shape[1]} dimensions, the test "
                     f"features {test_features.shape[1]}: take both from one model")
  if not asked or asked[0] < 1:
    raise ValueError(f"k-NN needs a k (evals.knn_k) of at least 1, not {k}")
  cut = [min(n, len(train_features)) for n in asked]
  ks = tuple(sorted(set(cut)))
  largest = int(max(train_labels.max(), test_labels.max()))
  num_classes = largest + 1 if num_classes is None else num_classes
  if largest >= num_classes:
    raise ValueError(f"label {largest} is out of range for num_classes={num_classes}")

  chunk = min(len(test_features), 256, max(1, SIMILARITIES // len(train_features)))
  ranks = _ranks(
    jnp.asarray(train_features), jnp.asarray(train_labels, jnp.int32), jnp.asarray(test_features),
    jnp.asarray(test_labels, jnp.int32), temperature, ks=ks, num_classes=num_classes, chunk=chunk)
  accuracy = {n: {"top1": float((r < 1).mean()), "top5": float((r < 5).mean())}
              for n, r in zip(ks, np.asarray(ranks))}
  return {n: dict(accuracy[m]) for n, m in zip(asked, cut)}


def knn_votes(train_features, train_labels, queries, k: Sequence[int] = (10, 20, 100, 200),
              temperature: float = 0.07, num_classes: int | None = None, skip: int = 0
              ) -> dict[int, np.ndarray]:
  """What the nearest training features say of each query, class by class.

  Args:
    train_features, train_labels, temperature: as for `knn_accuracy`.
    queries: [M, D].
    k: as there; those above N - skip are cut to it.
    num_classes: None takes the largest label + 1.
    skip: so many nearest neighbours do not vote: 1 where the queries are in the bank themselves.

  Returns:
    By k, float32 [M, C]. The votes of the largest k sum to 1, those of others to less.

  Raises:
    ValueError: no neighbour is left to vote, or a k is below 1.
  """
  left = len(train_features) - skip
  if left < 1 or min(k) < 1:
    raise ValueError(f"k-NN needs a k of at least 1 and a neighbour to vote, not k = {min(k)} of "
                     f"{left} neighbours")
  ks = tuple(sorted({min(int(n), left) for n in k}))
  num_classes = int(np.max(train_labels)) + 1 if num_classes is None else num_classes
  bank = _normalize(jnp.asarray(train_features))
  labels = jnp.asarray(train_labels, jnp.int32)
  chunk = max(1, min(len(queries), 256, SIMILARITIES // len(train_features)))
  blocks = [_votes_of(bank, labels, jnp.asarray(queries[i:i + chunk]), temperature, ks=ks,
                      num_classes=num_classes, skip=skip) for i in range(0, len(queries), chunk)]
  votes = {n: np.concatenate(x) for n, x in zip(ks, zip(*blocks))}
  return {int(n): votes[min(int(n), left)] for n in k}


_votes_of = jax.jit(_votes, static_argnames=("ks", "num_classes", "skip"))


def raw_pixels(images: Iterable[np.ndarray], size: int = 32) -> np.ndarray:
  """Images shrunk to `size` x `size`, as features: the line that learned ones have to beat.

  Args:
    images: uint8 [H, W, 3] each, of any sizes; an array [B, H, W, 3] does as well.
    size: side in pixels.

  Returns:
    float32 [B, size * size * 3] in [0, 1].
  """
  small = [np.asarray(Image.fromarray(np.asarray(image)).resize((size, size), Image.BILINEAR))
           for image in images]
  return np.stack(small).reshape(len(small), -1).astype(np.float32) / 255
