"""Retrieval of instances: rankings by cosine, and the mean average precision of each benchmark."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

QUERIES = 1024  # that are compared with the whole database at once
# Of the lists of revisited Oxford and Paris: which count as found, which are taken out of the
# ranking (Radenovic et al., CVPR 2018, section 3.2).
PROTOCOLS = {
  "easy": (("easy",), ("junk", "hard")),
  "medium": (("easy", "hard"), ("junk",)),
  "hard": (("hard",), ("junk", "easy")),
}


def rank(queries, database, metric: str = "cosine") -> np.ndarray:
  """The database's images by their nearness to each query, nearest first.

  Args:
    queries: [Q, D].
    database: [N, D].
    metric: "cosine", "dot" or "l2" (Euclidean distance).

  Returns:
    int32 [Q, N]; of equally near images the first one goes first.

  Raises:
    ValueError: shapes that do not fit, a metric that is none of these, features that are not
      finite.
  """
  if np.ndim(queries) != 2 or np.ndim(database) != 2 or queries.shape[1] != database.shape[1]:
    raise ValueError(f"queries [Q, D] and database [N, D] do not fit: {np.shape(queries)} and "
                     f"{np.shape(database)}")
  if metric not in ("cosine", "dot", "l2"):
    raise ValueError(f"the metric must be cosine, dot or l2, not {metric}")
  database = jnp.asarray(database, jnp.float32)
  chunks = [_rank(jnp.asarray(queries[i:i + QUERIES], jnp.float32), database, metric)
            for i in range(0, len(queries), QUERIES)]
  if not all(finite for _, finite in chunks):
    raise ValueError("the features of the images are not all finite")
  return np.concatenate([np.asarray(order) for order, _ in chunks])


@partial(jax.jit, static_argnames="metric")
def _rank(queries, database, metric):
  if metric == "cosine":
    queries, database = (x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)
                         for x in (queries, database))
  nearness = jnp.matmul(queries, database.T, precision="float32")
  if metric == "l2":
    nearness = 2 * nearness - jnp.square(database).sum(1)  # + |query|^2, the same for all
  return jnp.argsort(-nearness, axis=1, stable=True).astype(jnp.int32), jnp.isfinite(nearness).all()


def trapezoid_precision(positions: np.ndarray, count: int) -> float:
  """The average precision of revisited Oxford and Paris: the trapezoid rule.

  It is the mean over positives j = 0, 1 .. of (P(before) + P(at)) / 2, where P(before) is
  j / position and 1 for a position of 0. The step sum of most libraries is another number.

  Args:
    positions: of the positives in the ranking, from 0, ascending.
    count: how many positives there are.
  """
  found = np.arange(len(positions))
  before = np.where(positions > 0, found / np.maximum(positions, 1), 1)
  return float(((before + (found + 1) / (positions + 1)) / 2).sum() / count)


def revisited(ranks: np.ndarray, truth: Sequence[Mapping[str, Sequence[int]]], protocol: str,
              ks: Sequence[int] = (1, 5, 10)) -> dict[str, np.ndarray | float]:
  """Revisited Oxford and Paris.

  Junk is taken out of the ranking. A query without positives is left out of the means.

  Args:
    ranks: [Q, N], as from `rank`.
    truth: of each query, the lists `easy`, `hard` and `junk` of places in the database.
    protocol: "easy", "medium" or "hard".
    ks: of precision at k, whose divisor is the smaller of k and the position of the last positive.

  Returns:
    `map`, and by query `average_precision` [Q] (NaN without positives); `precision` [K], the mean
    precision at each k, and by query `precision_of` [Q, K].

  Raises:
    ValueError: a protocol that does not exist, as many rankings as queries are not there, or no
      query has a positive.
  """
  if protocol not in PROTOCOLS:
    raise ValueError(f"the protocol must be {', '.join(PROTOCOLS)}, not {protocol}")
  if len(ranks) != len(truth):
    raise ValueError(f"there are {len(ranks)} rankings, but {len(truth)} queries")
  gather = lambda own, names: np.concatenate([np.asarray(own[n], int) for n in names])
  right, junk = PROTOCOLS[protocol]
  precisions = np.full(len(truth), np.nan)
  at = np.full((len(truth), len(ks)), np.nan)
  for i, (order, own) in enumerate(zip(ranks, truth)):
    positives = gather(own, right)
    if not len(positives):
      continue
    kept = order[~np.isin(order, gather(own, junk))]
    positions = np.flatnonzero(np.isin(kept, positives))
    precisions[i] = trapezoid_precision(positions, len(positives))
    last = positions[-1] + 1 if len(positions) else 1
    at[i] = [(positions < min(k, last)).sum() / min(k, last) for k in ks]
  if np.isnan(precisions).all():
    raise ValueError(f"no query has a positive in the protocol {protocol}")
  return dict(map=float(np.nanmean(precisions)), average_precision=precisions,
              precision=np.nanmean(at, axis=0), precision_of=at)


def reciprocal_rank(ranks: np.ndarray, targets: np.ndarray, k: int | None = None) -> np.ndarray:
  """1 / the position (from 1) of each query's only target, 0 if it is not among the first k.

  Its mean is AmsterTime's mAP (Yildiz et al. 2022). The original's default of k = 1 makes that the
  top-1 accuracy; None looks through the whole ranking.

  Args:
    ranks: [Q, N], as from `rank`.
    targets: int [Q], places in the database.
    k: how far to look.

  Returns:
    float64 [Q].
  """
  position = (ranks == np.asarray(targets)[:, None]).argmax(1) + 1
  return np.where(position <= (k or ranks.shape[1]), 1 / position, 0)


def amstertime(new, old, k: int | None = None, metric: str = "cosine") -> dict[str, dict]:
  """Old photographs found by new ones of the same place and the other way round.

  Args:
    new, old: features [N, D] each; the i-th of both show one place.
    k, metric: as of `reciprocal_rank` and `rank`.

  Returns:
    `old` (old queries), `new` and `all`, each with `map`, `top1` and, if k reaches so far, `top5`,
    from 0 to 1.

  Raises:
    ValueError: there are not as many new as old photographs, and what `rank` raises.
  """
  if len(new) != len(old):
    raise ValueError(f"there are {len(new)} new photographs, but {len(old)} old ones")
  targets = np.arange(len(new))
  ranks = dict(old=reciprocal_rank(rank(old, new, metric), targets, k),
               new=reciprocal_rank(rank(new, old, metric), targets, k))
  ranks["all"] = np.concatenate([ranks["old"], ranks["new"]])
  figures = {name: dict(map=float(x.mean()), top1=float((x == 1).mean()),
                        top5=float((x > 1 / 5.5).mean())) for name, x in ranks.items()}
  if (k or len(new)) < min(5, len(new)):
    for own in figures.values():
      del own["top5"]  # the original says 0
  return figures
