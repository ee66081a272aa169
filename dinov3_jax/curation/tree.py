"""A tree of clusters: rows at its leaves, and clusters of clusters above them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

ROUNDING = 1e-5  # of squared distances, relative


@dataclasses.dataclass(frozen=True)
class Level:
  """The clusters of one level, and what belongs to each.

  Attributes:
    ids: int64 [n], what is in the first cluster, in the second and so on: rows of features, or
      clusters of the level below. Inside a cluster the closest to the centroid is first, the lower
      number at a tie.
    offsets: int64 [k + 1], where each cluster begins in `ids`, and where the last one ends.
  """

  ids: np.ndarray
  offsets: np.ndarray

  @property
  def sizes(self) -> np.ndarray:
    """How much each cluster has of the level below, int64 [k]."""
    return np.diff(self.offsets)

  def members(self, cluster: int) -> np.ndarray:
    """What is in a cluster."""
    return self.ids[self.offsets[cluster]:self.offsets[cluster + 1]]

  def closest(self, count: int) -> np.ndarray:
    """The first `count` of each cluster, fewer of those with fewer, in the order of `ids`."""
    place = np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], self.sizes)
    return self.ids[place < count]


def make_level(cluster: np.ndarray, distance: np.ndarray, k: int) -> Level:
  """Sorts what was assigned.

  Distances that are equal in exact arithmetic, as those of two rows to their mean, differ by the
  rounding of float32, which must not decide: those that agree to `ROUNDING` are a tie.

  Args:
    cluster: int [n] below k, or -1 for what is in no cluster.
    distance: [n] to the centroid.
    k: clusters; any of them may be empty.
  """
  order = np.lexsort((distance, cluster))  # stable: ties stay in the order of their numbers
  order = order[np.count_nonzero(cluster < 0):]
  sizes = np.bincount(cluster[cluster >= 0], minlength=k)
  order = _settle_ties(order, cluster[order], distance[order])
  return Level(order.astype(np.int64), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def _settle_ties(order: np.ndarray, cluster: np.ndarray, distance: np.ndarray) -> np.ndarray:
  """Sorts by number where sorted distances of a cluster hardly differ.

  Distances that follow each other closely form a run, which is cut into spans of `ROUNDING` from
  its first one on: where rows are dense, a whole cluster may be one run.
  """
  linked = (cluster[1:] == cluster[:-1]) & (distance[1:] - distance[:-1] <= ROUNDING * distance[1:])
  if not linked.any():
    return order
  place = np.arange(len(order))
  run = np.maximum.accumulate(np.where(np.concatenate([[False], linked]), 0, place))
  begin = np.maximum(distance[run], np.finfo(np.float32).tiny)
  span = ((distance - distance[run]) / (ROUNDING * begin)).astype(np.int64)
  tied = np.concatenate([[False], linked]) | np.concatenate([linked, [False]])
  settled = order.copy()
  places = place[tied]
  settled[places] = order[places[np.lexsort((order[places], span[places], run[places]))]]
  return settled


@dataclasses.dataclass(frozen=True)
class Tree:
  """Levels from the lowest, whose clusters have rows, to the highest.

  Raises:
    ValueError: levels that do not fit onto each other.
  """

  levels: Sequence[Level]

  def __post_init__(self):
    if not self.levels:
      raise ValueError("a tree needs at least one level of clusters")
    for number, (below, above) in enumerate(zip(self.levels, self.levels[1:]), 2):
      if not np.array_equal(np.sort(above.ids), np.arange(len(below.sizes))):
        raise ValueError(f"level {number} must have each of the {len(below.sizes):,} clusters of "
                         "the level below once")

  @functools.cached_property
  def flat_sizes(self) -> list[np.ndarray]:
    """For each level, how many rows lie below each cluster: int64 [k]."""
    flat = [self.levels[0].sizes]
    for level in self.levels[1:]:
      running = np.concatenate([[0], np.cumsum(flat[-1][level.ids])])
      flat.append(running[level.offsets[1:]] - running[level.offsets[:-1]])
    return flat

  def cluster_of_rows(self, level: int, rows: int) -> np.ndarray:
    """The cluster of every row at a level (0 is the lowest): int64 [rows], -1 for none."""
    found = np.full(rows, -1)
    found[self.levels[0].ids] = np.repeat(np.arange(len(self.levels[0].sizes)),
                                          self.levels[0].sizes)
    for above in self.levels[1:level + 1]:
      parent = np.full(len(above.ids) + 1, -1)  # the last one is the parent of none
      parent[above.ids] = np.repeat(np.arange(len(above.sizes)), above.sizes)
      found = parent[found]
    return found

  def counts(self, level: int, rows: np.ndarray) -> np.ndarray:
    """How many of some rows, repetitions counted, each cluster of a level has: int64 [k]."""
    rows = np.asarray(rows)
    highest = int(max(rows.max(initial=-1), self.levels[0].ids.max(initial=-1))) + 1
    cluster = self.cluster_of_rows(level, highest)[rows]
    return np.bincount(cluster[cluster >= 0], minlength=len(self.levels[level].sizes))


def entropy(counts: np.ndarray) -> float:
  """Of the shares that clusters have of all rows, in bits; log2(k) where all k have as many."""
  counts = np.asarray(counts, np.float64)
  if not counts.sum():
    return 0.0
  share = counts[counts > 0] / counts.sum()
  return float(abs(-(share * np.log2(share)).sum()))


def evenness(counts: np.ndarray) -> float:
  """2 ** entropy / k: from 1 / k, where one of k clusters has everything, to 1."""
  return 2 ** entropy(counts) / len(counts)
