"""k-means by Lloyd's iterations, over any number of devices and chunks of rows."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from dinov3_jax.curation import seeding
from dinov3_jax.curation.nearest import (
  Centroids,
  Sums,
  nearest,
  padded_centroids,
  place_centroids,
  sums,
)
from dinov3_jax.curation.rows import SHARDED, Chunk, Points, fetch, padded, place

ITERATIONS = 50
SEED_ROWS = 2**23  # k-means++ reads all of its rows for every seed: beyond, it takes a sample


@dataclasses.dataclass(frozen=True)
class Assignment:
  """Clusters of rows, on the host.

  Attributes:
    cluster: int32 [n], -1 for rows with numbers that are not finite.
    distance: float32 [n], squared, to the cluster's centroid.
  """

  cluster: np.ndarray
  distance: np.ndarray


def seeds(points: Points, k: int, rng: np.random.Generator, *, limit: int = SEED_ROWS,
          done: seeding.Progress | None = None,
          watch: Callable[[int, Callable[[], seeding.Progress]], None] | None = None) -> np.ndarray:
  """The rows where k-means begins, by greedy k-means++: int64 [min(k, rows that count)].

  Args:
    points: the rows.
    k: how many.
    rng: what is random.
    limit: with more rows than that, or than eight for each seed, they are chosen in a random
      sample.
    done, watch: see `seeding.plus_plus`; with `done`, `rng` must be as new as it was before.

  Raises:
    ValueError: no row is finite, or k is not positive.
  """
  if k < 1:
    raise ValueError(f"the number of clusters must be positive, not {k}")
  valid = np.flatnonzero(points.finite())
  if not len(valid):
    raise ValueError(f"none of the {points.rows:,} rows of features is finite")
  k, limit = min(k, len(valid)), max(limit, 8 * k)
  if len(valid) > limit:
    valid = np.sort(rng.choice(valid, limit, replace=False))
  if len(points.sizes()) == 1 and len(valid) == points.rows:
    chunk = next(iter(points.chunks()))
  else:
    chunk = place(points.take(valid), points.mesh)
  first, uniforms = seeding.draws(rng, len(valid), k)
  return valid[seeding.plus_plus(chunk, first, uniforms, points.mesh, done=done, watch=watch)[0]]


def assign_chunks(points: Points, centroids: np.ndarray, start: int = 0, cosine: bool = False
                  ) -> Iterator[Assignment]:
  """The nearest centroids, chunk by chunk from chunk `start` on; `cosine` as for `lloyd`."""
  placed = place_centroids(centroids, points.mesh)
  for chunk in points.chunks(start):
    found = nearest(chunk, placed, points.mesh, cosine)
    yield Assignment(*(fetch(value)[:chunk.rows] for value in found))


def assign(points: Points, centroids: np.ndarray, cosine: bool = False) -> Assignment:
  """The nearest centroid of every row, the lowest of those at a tie; `cosine` as for `lloyd`."""
  parts = list(assign_chunks(points, centroids, cosine=cosine))
  return Assignment(*(np.concatenate([getattr(part, name) for part in parts])
                      for name in ("cluster", "distance")))


def lloyd(points: Points, centroids: np.ndarray, iterations: int = ITERATIONS, *,
          cosine: bool = False, done: int = 0,
          watch: Callable[[int, Callable[[], np.ndarray]], None] | None = None) -> np.ndarray:
  """Moves centroids to the means of their rows, again and again.

  A cluster without rows keeps its centroid. An iteration that changes no centroid ends it: all
  others would do the same.

  Args:
    points: the rows.
    centroids: [k, d], where to begin.
    iterations: at most so many.
    cosine: by the distance 2 - 2 x.c of rows of length 1; means stay as they are, and are not
      brought to length 1.
    done: iterations that led to `centroids`, when this goes on where another call was stopped.
    watch: called after each iteration with how many are done and a function that gives the
      centroids.

  Returns:
    float32 [k, d].
  """
  placed = place_centroids(centroids, points.mesh)
  for i in range(done, iterations):
    moved = _update(placed, points, cosine)
    same = bool(_equal(placed.c, moved.c))
    placed = moved
    if watch:
      watch(i + 1, lambda placed=placed: fetch(placed.c)[:placed.k])
    if same:
      break
  return fetch(placed.c)[:placed.k]


def _update(centroids: Centroids, points: Points, cosine: bool) -> Centroids:
  """The means of the rows that are nearest to each centroid."""
  total = None
  for chunk in points.chunks():
    cluster = nearest(chunk, centroids, points.mesh, cosine).cluster
    part = sums(chunk, cluster, centroids.k, points.mesh)
    total = part if total is None else _add(total, part)
  return Centroids(_means(total, centroids.c), centroids.k)


@functools.partial(jax.jit, donate_argnums=0)
def _add(a: Sums, b: Sums) -> Sums:
  return jax.tree.map(jnp.add, a, b)


@jax.jit
def _means(total: Sums, before: jax.Array) -> jax.Array:
  count = total.count[:, None]
  return jnp.where(count > 0, total.total / jnp.maximum(count, 1), before)


@jax.jit
def _equal(a: jax.Array, b: jax.Array) -> jax.Array:
  return (a == b).all()


def fit(points: Points, k: int, *, iterations: int = ITERATIONS, restarts: int = 1, seed: int = 0
        ) -> tuple[np.ndarray, Assignment]:
  """k-means: seeds by greedy k-means++, then Lloyd's iterations.

  Args:
    points: the rows.
    k: clusters, cut to the rows that count.
    iterations: of each run.
    restarts: runs, of which the one of the least `potential` counts, the first at a tie.
    seed: of what is random.

  Returns:
    float32 [k, d], and the clusters of the rows.

  Raises:
    ValueError: as `seeds`; no restarts.
  """
  if restarts < 1:
    raise ValueError(f"restarts must be positive, not {restarts}")
  best = None
  for run in range(restarts):
    start = points.take(seeds(points, k, np.random.default_rng([seed, run])))
    centroids = lloyd(points, start, iterations)
    assigned = assign(points, centroids)
    left = potential(points, assigned.cluster, len(centroids)) if restarts > 1 else 0
    if best is None or left < best[0]:
      best = left, centroids, assigned
  return best[1:]


def potential(points: Points, cluster: np.ndarray, k: int) -> float:
  """The sum of squared distances of rows to the means of their clusters, by which runs compare.

  Args:
    points: the rows.
    cluster: int [rows] below k, -1 for none.
    k: clusters.
  """
  total = np.zeros((k, points.dim))
  count = np.zeros(k)
  for _, x, own in _on_host(points, cluster):
    np.add.at(total, own, x)
    count += np.bincount(own, minlength=k)
  means = total / np.maximum(count, 1)[:, None]
  return float(sum(np.square(x - means[own]).sum() for _, x, own in _on_host(points, cluster)))


def _on_host(points: Points, cluster: np.ndarray, block: int = 2**16):
  """Numbers, rows in float64 and clusters of the rows that have one, in blocks."""
  numbers = np.flatnonzero(cluster >= 0)
  for i in range(0, len(numbers), block):
    part = numbers[i:i + block]
    yield part, points.take(part).astype(np.float64), cluster[part]


def compile_iteration(rows: int, dim: int, k: int, mesh: Mesh, dtype=jnp.bfloat16
                      ) -> tuple[jax.stages.Compiled, tuple[int, int]]:
  """One iteration as one program, compiled ahead of time; nothing is computed.

  Args:
    rows: of the features, over all devices.
    dim: of a row.
    k: centroids.
    mesh: from `make_mesh`; its devices need not be there.
    dtype: of the features.

  Returns:
    The program, a function of rows, which of them count, and centroids; and to how many rows and
    centroids it is filled up.
  """
  n, many = padded(rows, mesh), padded_centroids(k, mesh.size)

  def iteration(x, valid, c):
    chunk = Chunk(x, valid, 0, rows)
    cluster = nearest(chunk, Centroids(c, k), mesh).cluster
    return _means(sums(chunk, cluster, k, mesh), c)

  sharding = NamedSharding(mesh, SHARDED)
  shapes = [((n, dim), dtype), ((n,), jnp.bool_), ((many, dim), jnp.float32)]
  arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]
  return jax.jit(iteration, donate_argnums=2).lower(*arguments).compile(), (n, many)
