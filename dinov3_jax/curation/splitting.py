"""The second step of a two-step level: every cluster is split by a k-means of its own.

So millions of clusters cost little more than the square root of what they cost at once. Clusters
are filled up to a few sizes and split many at a time, each on one device.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dinov3_jax.curation import kmeans, seeding
from dinov3_jax.curation.rows import AXIS, SEARCH, ArrayPoints, Points, put
from dinov3_jax.curation.tree import Level

RESTARTS = 10
FIT_ROWS = 2**16  # a cluster with more rows is split by a random sample of so many
UNIT_ROWS = 2**20  # rows of the clusters whose parts are kept on disk together
BATCH_BYTES = 2**28  # of the clusters that a device splits at once


class Parts(NamedTuple):
  """What the clusters of a unit became.

  Attributes:
    centroids: float32 [parts, d], those with rows alone, cluster by cluster.
    count: int64 [clusters], how many parts each cluster has.
    part: int64 [rows], the number of each row's part, rows in the order of the level.
    distance: float32 [rows], squared, to its centroid.
  """

  centroids: np.ndarray
  count: np.ndarray
  part: np.ndarray
  distance: np.ndarray


def units(level: Level) -> Iterator[tuple[int, int]]:
  """Spans of clusters that are split together, each of about `UNIT_ROWS` rows."""
  begin = 0
  while begin < len(level.sizes):
    limit = level.offsets[begin] + UNIT_ROWS
    end = max(int(np.searchsorted(level.offsets, limit, side="right")) - 1, begin + 1)
    yield begin, end
    begin = end


def split_unit(points: Points, level: Level, span: tuple[int, int], parts: int, *, seed: int,
               iterations: int = kmeans.ITERATIONS, restarts: int = RESTARTS,
               report: Callable[[float], None] = lambda share: None) -> Parts:
  """Splits each cluster of a span by k-means.

  Of `restarts` runs the one counts that leaves least to the means of its parts. Parts without rows
  are left out, and so a cluster has at most as many as it has rows.

  Args:
    points: what the level is of.
    level: whose clusters to split.
    span: the first cluster, and the one after the last.
    parts: how many each becomes at most.
    seed: of what is random, together with a cluster's number and nothing else.
    iterations: of each run.
    restarts: how many runs.
    report: called with the share of the clusters that are done.
  """
  clusters = np.arange(*span)
  fit = np.minimum(level.sizes[clusters], FIT_ROWS)
  bucket = 2 ** np.ceil(np.log2(np.maximum(fit, SEARCH))).astype(int)
  found: dict[int, tuple] = {c: (np.zeros((0, points.dim)), np.zeros(0, int), np.zeros(0))
                             for c in clusters[fit == 0].tolist()}
  for rows in np.unique(bucket[fit > 0]).tolist():
    same = clusters[(bucket == rows) & (fit > 0)]
    batch = max(BATCH_BYTES // (4 * rows * (points.dim + parts)), 1)
    batch = min(batch, -(-len(same) // points.mesh.size)) * points.mesh.size
    for i in range(0, len(same), batch):
      found |= _split_batch(points, level, same[i:i + batch], (batch, rows, parts), seed,
                            iterations, restarts)
      report(len(found) / len(clusters))
  count = [len(found[c][0]) for c in clusters]
  first = np.concatenate([[0], np.cumsum(count)])
  return Parts(np.concatenate([found[c][0] for c in clusters]).astype(np.float32),
               np.array(count), np.concatenate([found[c][1] + begin for c, begin
                                                in zip(clusters, first)]).astype(np.int64),
               np.concatenate([found[c][2] for c in clusters]).astype(np.float32))


def _split_batch(points, level, clusters, shape, seed, iterations, restarts) -> dict[int, tuple]:
  """(centroids, part of each row, distances) by cluster."""
  batch, rows, parts = shape
  x = np.zeros((batch, rows, points.dim), np.float32)
  valid = np.zeros((batch, rows), bool)
  first = np.zeros((batch, restarts), np.int32)
  uniforms = np.zeros((batch, restarts, max(parts - 1, 1), seeding.trials(parts)), np.float32)
  members = []
  for i, cluster in enumerate(clusters.tolist()):
    rng = np.random.default_rng([seed, cluster])
    own = level.members(cluster)
    if len(own) > FIT_ROWS:
      own = own[np.sort(rng.choice(len(own), FIT_ROWS, replace=False))]
    members.append(own)
    valid[i, :len(own)] = True
    for j in range(restarts):
      first[i, j], drawn = seeding.draws(rng, len(own), parts)
      uniforms[i, j, :parts - 1] = drawn
  everything = np.concatenate(members)
  x[valid] = points.take(everything)
  run = _compiled(points.mesh, parts, iterations)
  centroids, part, distance = (np.asarray(value) for value in run(
    *(put(value, points.mesh) for value in (x, valid, first, uniforms))))
  found = {}
  for i, cluster in enumerate(clusters.tolist()):
    own = level.members(cluster)
    if len(own) == len(members[i]):
      result = part[i, :len(own)], distance[i, :len(own)]
    else:
      result = _assign_all(points, own, centroids[i])
    there, number = np.unique(result[0], return_inverse=True)
    found[cluster] = centroids[i][there], number, result[1]
  return found


def _assign_all(points: Points, rows: np.ndarray, centroids: np.ndarray
                ) -> tuple[np.ndarray, np.ndarray]:
  """The parts and distances of a cluster's rows, of which only a sample was used so far."""
  found = [kmeans.assign(ArrayPoints(points.take(rows[i:i + UNIT_ROWS]), points.mesh), centroids)
           for i in range(0, len(rows), UNIT_ROWS)]
  return (np.concatenate([a.cluster for a in found]),
          np.concatenate([a.distance for a in found]))


@functools.cache
def _compiled(mesh: Mesh, parts: int, iterations: int):
  def of_device(x, valid, first, uniforms):
    one = functools.partial(split_one, parts=parts, iterations=iterations)
    return jax.vmap(one)(x, valid, first, uniforms)

  return jax.jit(jax.shard_map(of_device, mesh=mesh, in_specs=P(AXIS), out_specs=P(AXIS),
                               check_vma=False),
                 out_shardings=jax.NamedSharding(mesh, P()))


def split_one(x, valid, first, uniforms, *, parts: int, iterations: int):
  """k-means of one cluster, the best of several runs.

  Args:
    x, valid: float32 [n, d], bool [n], n a multiple of 256.
    first: int32 [runs], the rows of the first seeds.
    uniforms: float32 [runs, max(parts - 1, 1), L], see `seeding`.
    parts, iterations: as for `split_unit`.

  Returns:
    Centroids float32 [parts, d]; for each row its part, int32 [n], and the squared distance to the
    centroid, float32 [n].
  """
  def assign(c):
    score = jnp.square(c).sum(-1) - 2 * jnp.matmul(x, c.T, precision="highest")
    return jnp.argmin(score, 1).astype(jnp.int32)

  def means(part, c):
    bucket = jnp.where(valid, part, parts)
    total = jax.ops.segment_sum(x, bucket, parts + 1)[:parts]
    count = jax.ops.segment_sum(jnp.ones(len(x)), bucket, parts + 1)[:parts, None]
    return jnp.where(count > 0, total / jnp.maximum(count, 1), c)

  def distances(part, c):
    return jnp.where(valid, jnp.square(x - c[part]).sum(-1), 0)

  def run(draws):
    first, uniforms = draws
    closest = seeding.begin_body(x, valid, first, axis=None)
    further, _ = seeding.grow_body(x, closest, first, uniforms, jnp.int32(parts - 1), axis=None)
    seeds = jnp.concatenate([first[None], further])[:parts]
    c = lax.fori_loop(0, iterations, lambda _, c: means(assign(c), c), x[seeds])
    part = assign(c)
    return c, part, distances(part, means(part, c)).sum()

  centroids, part, left = lax.map(run, (first, uniforms))
  best = jnp.argmin(left)
  return centroids[best], part[best], distances(part[best], centroids[best])
