"""Balanced sampling down a tree of clusters (Vo et al. 2024, "Automatic Data Curation").

A target is split over the clusters of the highest level as water fills vessels of different
depths: all get as much, but none more than it has. What each gets is split over its own parts in
the same way, down to the rows. So a cluster's share does not grow with how often its like was
found, unless nothing else is left.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from dinov3_jax.curation.tree import Tree

STRATEGIES = ("random", "closest")


class Split(NamedTuple):
  """What of a target's split is determined.

  Attributes:
    cut: the water's level, the largest whole number at which all sure shares sum up to the target
      at most.
    base: int64 [k], everyone's sure share.
    remainder: how many more there are to give, one each to different `candidates`.
    candidates: those that have more than `cut`.
  """

  cut: int
  base: np.ndarray
  remainder: int
  candidates: np.ndarray


def water_fill(sizes: np.ndarray, target: int, multiplier: int = 1) -> Split:
  """Splits a target over parts.

  Args:
    sizes: int [k], what each part has; 0 is allowed.
    target: how many to take. Where it is more than all have together, everyone gives all.
    multiplier: how often the same may be taken.
  """
  capacity = np.asarray(sizes, np.int64) * multiplier
  ordered = np.sort(capacity)
  total = int(ordered.sum())
  if total <= target:
    cut = int(ordered.max(initial=0))
    return Split(cut, capacity, 0, np.flatnonzero(capacity > cut))
  # With the i smallest full, the others share the rest; the cut is where that first fits.
  full = np.concatenate([[0], np.cumsum(ordered)[:-1]])
  share = (target - full) // np.arange(len(ordered), 0, -1)
  cut = int(share[np.argmax(share < ordered)])
  base = np.minimum(capacity, cut)
  return Split(cut, base, int(target - base.sum()), np.flatnonzero(capacity > cut))


def split(sizes: np.ndarray, target: int, multiplier: int, keys: np.ndarray) -> np.ndarray:
  """Splits a target over parts, the remainder to the candidates with the lowest keys: int64 [k]."""
  cut = water_fill(sizes, target, multiplier)
  if not cut.remainder:
    return cut.base
  given = cut.base.copy()
  lucky = np.argsort(keys[cut.candidates], kind="stable")[:cut.remainder]
  given[cut.candidates[lucky]] += 1
  return given


def random_keys(seed: int, purpose: int, numbers: np.ndarray) -> np.ndarray:
  """A random 64-bit number for each of `numbers`, which depends on it, seed and purpose alone.

  So a sample is the same in whatever order, and on however many machines, it is drawn. The mixing
  function is SplitMix64's (Steele, Lea and Flood 2014).
  """
  def mix(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

  golden = np.uint64(0x9E3779B97F4A7C15)
  with np.errstate(over="ignore"):
    key = np.array([seed], np.uint64)
    for value in (np.array([purpose], np.uint64), np.asarray(numbers).astype(np.uint64)):
      key = mix(mix(key + golden) ^ (value + golden))
  return key


@dataclasses.dataclass(frozen=True)
class Sample:
  """What was sampled.

  Attributes:
    rows: int64, in the order of the tree; a row may be there `multiplier` times.
    given: for each level from the lowest, how many rows each of its clusters gave: int64 [k].
  """

  rows: np.ndarray
  given: list[np.ndarray]


def sample(tree: Tree, target: int, *, multiplier: int = 1, strategy: str = "random",
           seed: int = 0) -> Sample:
  """A balanced sample of min(target, multiplier x rows) rows.

  Args:
    tree: of clusters.
    target: how many rows.
    multiplier: how often a row may be taken at most. A cluster that owes more than it has gives all
      of it as often as that goes, and of the rest some.
    strategy: which rows of a lowest cluster: "random" ones, or those "closest" to its centroid.
    seed: of what is random, not negative.

  Raises:
    ValueError: a number that is not positive, or an unknown strategy.
  """
  if target < 1 or multiplier < 1:
    raise ValueError(f"target and multiplier must be positive, not {target} and {multiplier}")
  if strategy not in STRATEGIES:
    raise ValueError(f"unknown strategy {strategy!r}; take {' or '.join(STRATEGIES)}")
  flat = tree.flat_sizes
  top = len(flat) - 1
  numbers = np.arange(len(flat[top]))
  given = [split(flat[top], target, multiplier, random_keys(seed, top + 1, numbers))]
  order = numbers
  for depth in range(top, 0, -1):
    level, below = tree.levels[depth], flat[depth - 1]
    keys = random_keys(seed, depth, np.arange(len(below)))
    budget, parts = np.zeros_like(below), []
    for cluster in order:
      children = level.members(cluster)
      parts.append(children)
      if len(children):
        budget[children] = split(below[children], int(given[0][cluster]), multiplier,
                                 keys[children])
    order = np.concatenate(parts)
    given.insert(0, budget)
  return Sample(_leaves(tree, order, given[0], strategy, seed), given)


def _leaves(tree: Tree, order: np.ndarray, budget: np.ndarray, strategy: str, seed: int
            ) -> np.ndarray:
  """The rows that the lowest clusters give, each `budget`; clusters in this order."""
  leaf = tree.levels[0]
  sizes = leaf.sizes
  copies = budget // np.maximum(sizes, 1)
  rest = budget - copies * sizes
  own = np.repeat(np.arange(len(sizes)), sizes)
  place = np.arange(len(leaf.ids)) - np.repeat(leaf.offsets[:-1], sizes)
  if strategy == "random":
    ranked = np.lexsort((random_keys(seed, 0, leaf.ids), own))
    rank = np.empty_like(place)
    rank[ranked] = place  # clusters are in the same places, sorted by key inside
  else:
    rank = place
  taken = copies[own] + (rank < rest[own])
  position = np.empty_like(order)
  position[order] = np.arange(len(order))
  # Every round has the members that are taken once more; a cluster's rounds stand together.
  rounds = [np.flatnonzero(taken > i) for i in range(int(taken.max(initial=0)))]
  entries = np.concatenate(rounds) if rounds else np.zeros(0, np.int64)
  return leaf.ids[entries[np.argsort(position[own[entries]], kind="stable")]]
