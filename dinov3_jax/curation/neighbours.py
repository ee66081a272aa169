"""The nearest rows of queries by cosine: of all rows, exactly, or of the rows in a few cells."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.curation.rows import AXIS, Points, fetch, is_finite, put
from dinov3_jax.curation.tree import Level

QUERIES = 1024  # compared at once
ROW_BLOCK = 4096  # rows that an exact search compares with them at once
APPROXIMATE_BLOCK = 2**16  # rows among which an approximate search looks at once
BATCH_BYTES = 2**28  # of the cells that a device searches at once


class Found(NamedTuple):
  """The nearest rows of each query, the nearest first, the lower number at a tie.

  Attributes:
    similarity: float32 [m, k], the cosine; -inf where there is no row.
    row: int64 [m, k]; -1 where there is no row.
  """

  similarity: np.ndarray
  row: np.ndarray


def none(m: int, k: int) -> Found:
  """Nothing found for m queries."""
  return Found(np.full((m, k), -np.inf, np.float32), np.full((m, k), -1))


def neighbours(queries: np.ndarray, points: Points, k: int, *, recall: float = 1.0) -> Found:
  """The k nearest rows of each query among all rows.

  Queries and rows are divided by their lengths here; a row of zeros has a cosine of 0 to all. Rows
  with numbers that are not finite are nobody's neighbours, and have none as queries.

  Args:
    queries: [m, d].
    points: [n, d].
    k: how many; where there are fewer rows, the last ones are -1.
    recall: the expected share of the true neighbours that are found. Below 1, `lax.approx_max_k`
      looks for them, which is faster on TPUs, and exact elsewhere.

  Raises:
    ValueError: features of another model, k or a recall out of range.
  """
  check(queries, points, k, recall)
  best = none(len(queries), k)
  run = _compiled(points.mesh, k, recall)
  for chunk in points.chunks():
    for i in range(0, len(queries), QUERIES):
      part = slice(i, i + QUERIES)
      q = put(_filled(queries[part], QUERIES), points.mesh, P())
      score, row = run(chunk.x, chunk.valid, q)
      new = Found(np.asarray(score), np.asarray(row, np.int64) + chunk.start)
      size = len(queries[part])
      merged = merge(Found(best.similarity[part], best.row[part]),
                     Found(new.similarity[:size], new.row[:size]))
      best.similarity[part], best.row[part] = merged
  return _cleared(best, queries)


def check(queries: np.ndarray, points: Points, k: int, recall: float = 1.0) -> None:
  """Raises a ValueError for a search that makes no sense."""
  if queries.ndim != 2 or queries.shape[1] != points.dim:
    raise ValueError(f"queries {list(queries.shape)} do not fit rows of {points.dim} dimensions: "
                     "take features of one model")
  if k < 1:
    raise ValueError(f"the number of neighbours must be positive, not {k}")
  if not 0 < recall <= 1:
    raise ValueError(f"recall must be above 0 and at most 1, not {recall}")


def merge(a: Found, b: Found) -> Found:
  """The best of two finds of the same queries."""
  similarity = np.concatenate([a.similarity, b.similarity], 1)
  row = np.concatenate([a.row, b.row], 1)
  k = a.row.shape[1]
  order = np.lexsort((row, -similarity), axis=1)[:, :k]
  return Found(np.take_along_axis(similarity, order, 1), np.take_along_axis(row, order, 1))


def _filled(queries: np.ndarray, size: int) -> np.ndarray:
  queries = np.asarray(queries, np.float32)
  queries = np.where(is_finite(queries)[:, None], queries, 0)
  return np.pad(queries, ((0, size - len(queries)), (0, 0)))


def _cleared(found: Found, queries: np.ndarray) -> Found:
  """Without what a query that is not finite found, and without the rows that fill up."""
  good = is_finite(np.asarray(queries))[:, None] & np.isfinite(found.similarity)
  return Found(np.where(good, found.similarity, -np.inf), np.where(good, found.row, -1))


@functools.cache
def _compiled(mesh: Mesh, k: int, recall: float):
  def of_device(x, valid, q):
    score, row = search_body(x, valid, q, k=k, recall=recall)
    row = row + lax.axis_index(AXIS) * len(x)
    score, row = (lax.all_gather(value, AXIS, axis=1, tiled=True) for value in (score, row))
    score, index = lax.top_k(score, k)
    return score, jnp.take_along_axis(row, index, 1)

  body = jax.shard_map(of_device, mesh=mesh, in_specs=(P(AXIS), P(AXIS), P()), out_specs=P(),
                       check_vma=False)
  return jax.jit(body)


def search_body(x, valid, q, *, k: int, recall: float = 1.0) -> tuple[jax.Array, jax.Array]:
  """The nearest of one device's rows.

  Args:
    x, valid: rows [n, d], n a multiple of 256, and which of them count.
    q: [m, d].
    k, recall: as for `neighbours`.

  Returns:
    Cosines float32 [m, k], -inf where there are fewer rows, and their numbers int32 [m, k].
  """
  n = len(x)
  limit = ROW_BLOCK if recall == 1 else APPROXIMATE_BLOCK
  block = next(b for b in range(min(limit, n), 0, -1) if n % b == 0)
  q = _unit(q.astype(jnp.float32))

  def step(best, part):
    rows, valid, start = part
    score = jnp.matmul(q, _unit(rows.astype(jnp.float32)).T, precision="highest")
    score = jnp.where(valid, score, -jnp.inf)
    if recall == 1:
      score, row = lax.top_k(score, min(k, block))
    else:
      score, row = lax.approx_max_k(score, min(k, block), recall_target=recall,
                                    reduction_input_size_override=n)
    score, row = (jnp.concatenate(pair, 1) for pair in zip(best, (score, start + row)))
    score, index = lax.top_k(score, k)  # at a tie the earlier one, which is the lower number
    return (score, jnp.take_along_axis(row, index, 1)), None

  start = jnp.full((len(q), k), -jnp.inf), jnp.zeros((len(q), k), jnp.int32)
  parts = x.reshape(n // block, block, -1), valid.reshape(-1, block), jnp.arange(0, n, block)
  return lax.scan(step, start, parts)[0]


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def cell_neighbours(queries: np.ndarray, probes: np.ndarray, points: Points, level: Level, k: int
                    ) -> Found:
  """The k nearest rows of each query among the rows of a few clusters.

  Args:
    queries: [m, d].
    probes: int [m, p], different clusters to look into for each query, -1 for none; such as the
      clusters whose centroids are nearest to it, by `nearest_cells`.
    points, k: as for `neighbours`.
    level: the clusters of the rows.
  """
  check(queries, points, k)
  best = none(len(queries), k)
  flat = probes.ravel()
  order = np.argsort(flat, kind="stable")
  order = order[np.count_nonzero(flat < 0):]
  tasks = []  # a cell, and at most `QUERIES` queries that look into it
  for asking in np.split(order, np.flatnonzero(np.diff(flat[order])) + 1):
    if len(asking) and level.sizes[flat[asking[0]]]:
      tasks += [(int(flat[asking[0]]), asking[i:i + QUERIES] // probes.shape[1])
                for i in range(0, len(asking), QUERIES)]
  bucket = lambda size: 256 * 2 ** max(int(np.ceil(np.log2(size / 256))), 0)
  groups: dict[tuple[int, int], list] = {}
  for cell, asking in tasks:
    shape = bucket(level.sizes[cell]), min(bucket(len(asking)), QUERIES)
    groups.setdefault(shape, []).append((cell, asking))
  for (size, width), members in sorted(groups.items()):
    batch = max(BATCH_BYTES // (4 * points.dim * (size + width)), 1)
    batch = min(batch, -(-len(members) // points.mesh.size)) * points.mesh.size
    for i in range(0, len(members), batch):
      _search_cells(queries, points, level, members[i:i + batch], (batch, size, width), best)
  return _cleared(best, queries)


def _search_cells(queries, points, level, tasks, shape, best: Found) -> None:
  """Merges what each task's queries find in its cell into `best`."""
  batch, size, width = shape
  k = best.row.shape[1]
  x = np.zeros((batch, size, points.dim), np.float32)
  valid = np.zeros((batch, size), bool)
  q = np.zeros((batch, width, points.dim), np.float32)
  rows = [np.sort(level.members(cell)) for cell, _ in tasks]
  for i, (own, (_, asking)) in enumerate(zip(rows, tasks)):
    valid[i, :len(own)] = True
    q[i] = _filled(queries[asking], width)
  x[valid] = points.take(np.concatenate(rows))
  score, place = (fetch(value) for value in _compiled_cells(points.mesh, k)(
    *(put(value, points.mesh) for value in (x, valid, q))))
  for i, (own, (_, asking)) in enumerate(zip(rows, tasks)):
    number = own[np.minimum(place[i, :len(asking)], len(own) - 1)]
    merged = merge(Found(best.similarity[asking], best.row[asking]),
                   Found(score[i, :len(asking)], number))
    best.similarity[asking], best.row[asking] = merged


@functools.cache
def _compiled_cells(mesh: Mesh, k: int):
  body = jax.shard_map(jax.vmap(functools.partial(search_body, k=k)), mesh=mesh,
                       in_specs=P(AXIS), out_specs=P(AXIS), check_vma=False)
  return jax.jit(body, out_shardings=NamedSharding(mesh, P()))


def nearest_cells(queries: np.ndarray, centroids: np.ndarray, count: int) -> np.ndarray:
  """The clusters whose centroids are nearest to each query by Euclidean distance.

  Args:
    queries: [m, d].
    centroids: [k, d].
    count: how many of them, cut to k.

  Returns:
    int32 [m, count], the nearest first; -1 for queries that are not finite.
  """
  count = min(count, len(centroids))
  out = np.full((len(queries), count), -1, np.int32)
  for i in range(0, len(queries), QUERIES):
    part = queries[i:i + QUERIES]
    found = np.asarray(_nearest_cells(_filled(part, QUERIES), np.asarray(centroids, np.float32),
                                      count=count))[:len(part)]
    out[i:i + QUERIES] = np.where(is_finite(np.asarray(part))[:, None], found, -1)
  return out


@functools.partial(jax.jit, static_argnames="count")
def _nearest_cells(q, c, count: int):
  score = 2 * jnp.matmul(q, c.T, precision="highest") - jnp.square(c).sum(-1)
  return lax.top_k(score, count)[1]
