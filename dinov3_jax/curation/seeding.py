"""Greedy k-means++: seeds far from one another, in proportion to what they explain.

Arthur and Vassilvitskii 2007, with scikit-learn's greedy choice: every seed is the best of
`trials(k)` candidates drawn in proportion to the squared distance to the nearest seed so far.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dinov3_jax.curation.rows import AXIS, SEARCH, Chunk, put, row_block


def trials(k: int) -> int:
  """Candidates for a seed: 2 + floor(ln k)."""
  return 2 + int(math.log(k))


def draws(rng: np.random.Generator, valid: np.ndarray, k: int) -> tuple[int, np.ndarray]:
  """What k-means++ needs to be random.

  Args:
    rng: the source.
    valid: bool [n], the rows that may be seeds.
    k: seeds.

  Returns:
    The first seed's row, and float64 [k - 1, trials(k)] uniform in [0, 1).
  """
  rows = np.flatnonzero(valid)
  return int(rows[rng.integers(len(rows))]), rng.uniform(size=(k - 1, trials(k)))


def plus_plus(chunk: Chunk, first: int, uniforms: np.ndarray, mesh: Mesh) -> tuple[np.ndarray,
                                                                                 float]:
  """Greedy k-means++.

  For each further seed, candidates are the rows where the running sum of squared distances to the
  nearest seed passes a uniform draw times their total. The one that leaves the least total is
  taken, the first at a tie. Where fewer than k rows differ, rows are taken again.

  Distances stay on their devices; what devices exchange in a round are the sums over blocks of 256
  rows, the candidates and their totals. In float32, the draw is as fine as a row up to 2**24 rows.

  Args:
    chunk: the rows.
    first: the row of the first seed.
    uniforms: [k - 1, L] in [0, 1), L candidates for each further seed.
    mesh: of the chunk.

  Returns:
    int64 [k] the seeds' rows in the order of their choice, and the sum of squared distances to the
    nearest of them.
  """
  run = _plus_plus(mesh, row_block(chunk.rows, mesh))
  uniforms = put(np.asarray(uniforms, np.float32), mesh, P())
  rows, potential = run(chunk.x, chunk.valid, put(np.int32(first), mesh, P()), uniforms)
  return np.asarray(rows).astype(np.int64), float(potential)


@functools.cache
def _plus_plus(mesh: Mesh, block: int):
  body = functools.partial(plus_plus_body, axis=AXIS, block=block)
  return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=(P(AXIS), P(AXIS), P(), P()),
                               out_specs=(P(), P()), check_vma=False))


def plus_plus_body(x, valid, first, uniforms, *, axis: str | None, block: int = SEARCH):
  """`plus_plus` on one device's rows x [n, d], n a multiple of 256; no axis where that is all."""
  n, dim = x.shape
  add = (lambda value: lax.psum(value, axis)) if axis else (lambda value: value)
  gather = (lambda value: lax.all_gather(value, axis, tiled=True)) if axis else (lambda v: v)
  offset = lax.axis_index(axis) * n if axis else 0
  block = next(b for b in range(min(block, n), 0, -SEARCH) if n % b == 0)
  lengths = lax.map(lambda rows: jnp.square(rows.astype(jnp.float32)).sum(-1),
                    x.reshape(-1, block, dim)).reshape(n)

  def fetch(rows):
    """The rows of these numbers, wherever they are: float32 [L, d]."""
    here = (rows >= offset) & (rows < offset + n)
    own = x[jnp.clip(rows - offset, 0, n - 1)].astype(jnp.float32)
    return add(jnp.where(here[:, None], own, 0))

  def shrunk(closest, seeds):
    """The squared distances that remain with each seed: blocks [n / block, block, L]."""
    def of_block(arguments):
      rows, length, closest = arguments
      dot = jnp.matmul(rows.astype(jnp.float32), seeds.T, precision="highest")
      distance = length[:, None] - 2 * dot + jnp.square(seeds).sum(-1)
      return jnp.minimum(closest[:, None], jnp.maximum(distance, 0))
    return of_block, (x.reshape(-1, block, dim), lengths.reshape(-1, block),
                      closest.reshape(-1, block))

  def totals(closest, seeds):
    of_block, arguments = shrunk(closest, seeds)
    return add(lax.map(lambda rows: of_block(rows).sum(0), arguments).sum(0))

  def closest_with(closest, seed):
    of_block, arguments = shrunk(closest, seed[None])
    return lax.map(of_block, arguments).reshape(n)

  def search(closest, uniform):
    """The rows where the running sum of `closest` reaches the draws."""
    own = closest.reshape(-1, SEARCH).sum(1)
    reached = jnp.cumsum(gather(own))
    target = uniform * reached[-1]
    number = jnp.minimum(jnp.searchsorted(reached, target, side="left"), len(reached) - 1)
    rest = target - jnp.where(number > 0, reached[number - 1], 0)
    place = number * SEARCH - offset
    here = (place >= 0) & (place < n)
    inside = jnp.clip(place, 0, n - SEARCH)[:, None] + jnp.arange(SEARCH)
    inside = add(jnp.where(here[:, None], closest[inside], 0))
    row = (jnp.cumsum(inside, 1) < rest[:, None]).sum(1)
    # Rounding may pass the block's end, where rows may lie that do not count.
    last = jnp.where(inside > 0, jnp.arange(SEARCH), 0).max(1)
    return number * SEARCH + jnp.minimum(row, last)

  def one(i, carry):
    chosen, closest = carry
    candidates = search(closest, uniforms[i])
    best = jnp.argmin(totals(closest, fetch(candidates)))
    # With nothing left to explain, the first seed is as good as any, and is surely valid.
    row = jnp.where(add(closest.sum()) > 0, candidates[best], first)
    return chosen.at[i + 1].set(row), closest_with(closest, fetch(row[None])[0])

  chosen = jnp.full(len(uniforms) + 1, first, jnp.int32)
  start = closest_with(jnp.where(valid, jnp.inf, 0), fetch(first[None])[0])
  chosen, closest = lax.fori_loop(0, len(uniforms), one, (chosen, start))
  return chosen, add(closest.reshape(-1, SEARCH).sum(1).sum())
