"""Greedy k-means++: seeds far from one another, in proportion to what they explain.

Arthur and Vassilvitskii 2007, with scikit-learn's greedy choice: every seed is the best of
`trials(k)` candidates drawn in proportion to the squared distance to the nearest seed so far.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dinov3_jax.curation.rows import AXIS, SEARCH, Chunk, fetch, put, row_block

PIECE = 256  # seeds that one call of the compiled function finds


class Progress(NamedTuple):
  """How far k-means++ has come.

  Attributes:
    rows: int64 [i], the seeds so far.
    closest: float32 [n], the squared distance of each row to the nearest of them.
  """

  rows: np.ndarray
  closest: np.ndarray


def trials(k: int) -> int:
  """Candidates for a seed: 2 + floor(ln k)."""
  return 2 + int(math.log(k))


def draws(rng: np.random.Generator, rows: int, k: int) -> tuple[int, np.ndarray]:
  """What k-means++ over so many rows needs to be random.

  Returns:
    The first seed's row, and float64 [k - 1, trials(k)] uniform in [0, 1).
  """
  return int(rng.integers(rows)), rng.uniform(size=(k - 1, trials(k)))


def plus_plus(chunk: Chunk, first: int, uniforms: np.ndarray, mesh: Mesh, *,
              done: Progress | None = None,
              watch: Callable[[int, Callable[[], Progress]], None] | None = None
              ) -> tuple[np.ndarray, float]:
  """Greedy k-means++.

  For each further seed, candidates are the rows where the running sum of squared distances to the
  nearest seed reaches a uniform draw times their total. The one that leaves the least total is
  taken, the first at a tie. Where fewer than k rows differ, rows are taken again.

  Distances stay on their devices; what devices exchange for a seed are the sums over blocks of 256
  rows, the candidates and their totals. In float32, a draw tells rows apart up to 2**24 of them.

  Args:
    chunk: the rows.
    first: the row of the first seed; it must be valid.
    uniforms: [k - 1, L] in [0, 1), L candidates for each further seed.
    mesh: of the chunk.
    done: where another call was stopped.
    watch: called now and then with how many seeds there are and a function that gives the
      `Progress`.

  Returns:
    int64 [k] the seeds' rows in the order of their choice, and the sum of squared distances to the
    nearest of them.
  """
  begin, grow = _compiled(mesh, row_block(len(chunk.x), mesh))
  everywhere = lambda value: put(np.asarray(value), mesh, P())
  if done is None:
    rows, closest = [np.array([first])], begin(chunk.x, chunk.valid, everywhere(np.int32(first)))
  else:
    rows = [done.rows]
    closest = put(np.pad(done.closest, (0, len(chunk.x) - len(done.closest))), mesh)
  count = len(rows[0])
  while count <= len(uniforms):
    piece = np.asarray(uniforms[count - 1:count - 1 + PIECE], np.float32)
    padded = np.pad(piece, ((0, PIECE - len(piece)), (0, 0)))
    found, closest = grow(chunk.x, closest, everywhere(np.int32(first)), everywhere(padded),
                          everywhere(np.int32(len(piece))))
    rows.append(np.asarray(found)[:len(piece)])
    count += len(piece)
    if watch:
      watch(count, lambda closest=closest: Progress(
        np.concatenate(rows), fetch(closest)[:chunk.rows]))
  return np.concatenate(rows).astype(np.int64), float(fetch(closest).astype(np.float64).sum())


@functools.cache
def _compiled(mesh: Mesh, block: int):
  """`begin_body` and `grow_body` over a mesh."""
  begin = jax.shard_map(functools.partial(begin_body, axis=AXIS, block=block), mesh=mesh,
                        in_specs=(P(AXIS), P(AXIS), P()), out_specs=P(AXIS), check_vma=False)
  grow = jax.shard_map(functools.partial(grow_body, axis=AXIS, block=block), mesh=mesh,
                       in_specs=(P(AXIS), P(AXIS), P(), P(), P()), out_specs=(P(), P(AXIS)),
                       check_vma=False)
  return jax.jit(begin), jax.jit(grow, donate_argnums=1)


def begin_body(x, valid, first, *, axis: str | None, block: int = SEARCH) -> jax.Array:
  """Squared distances to the first seed, 0 for rows that do not count.

  Args:
    x, valid: one device's rows [n, d], n a multiple of 256, and which of them count.
    first: the seed's number among the rows of all devices.
    axis: of the mesh; None where one device has all the rows.
    block: rows that are compared at once.

  Returns:
    float32 [n].
  """
  rows = _Rows(x, axis, block)
  return rows.closest(jnp.where(valid, jnp.inf, 0), rows.fetch(first[None]))


def grow_body(x, closest, first, uniforms, count, *, axis: str | None, block: int = SEARCH
              ) -> tuple[jax.Array, jax.Array]:
  """The next `count` seeds.

  Args:
    x, first, axis, block: as for `begin_body`.
    closest: float32 [n], squared distances to the nearest seed so far.
    uniforms: float32 [m, L].
    count: at most m.

  Returns:
    int32 [m] the seeds' numbers, of which `count` count, and `closest` with them.
  """
  rows = _Rows(x, axis, block)

  def one(i, carry):
    chosen, closest = carry
    candidates = rows.search(closest, uniforms[i])
    best = jnp.argmin(rows.totals(closest, rows.fetch(candidates)))
    # With nothing left to explain, the first seed is as good as any, and is surely valid.
    row = jnp.where(rows.add(closest.sum()) > 0, candidates[best], first)
    return chosen.at[i].set(row), rows.closest(closest, rows.fetch(row[None]))

  return lax.fori_loop(0, count, one, (jnp.zeros(len(uniforms), jnp.int32), closest))


class _Rows:
  """One device's rows, and what all devices do with theirs."""

  def __init__(self, x, axis: str | None, block: int):
    n, dim = x.shape
    block = next(b for b in range(min(block, n), 0, -SEARCH) if n % b == 0)
    self.x, self.axis, self.shape = x, axis, (n // block, block)
    self.offset = lax.axis_index(axis) * n if axis else 0
    self.blocks = x.reshape(*self.shape, dim)
    self.lengths = lax.map(lambda rows: jnp.square(rows.astype(jnp.float32)).sum(-1), self.blocks)

  def add(self, value):
    """The sum over the devices."""
    return lax.psum(value, self.axis) if self.axis else value

  def fetch(self, numbers):
    """The rows of these numbers, wherever they are: float32 [L, d]."""
    place = numbers - self.offset
    here = (place >= 0) & (place < len(self.x))
    own = self.x[jnp.clip(place, 0, len(self.x) - 1)].astype(jnp.float32)
    return self.add(jnp.where(here[:, None], own, 0))

  def _with(self, closest, seeds, reduce):
    """`reduce` of each block's squared distances [block, L] to the nearest, with one seed more."""
    def of_block(arguments):
      rows, length, closest = arguments
      dot = jnp.matmul(rows.astype(jnp.float32), seeds.T, precision="highest")
      distance = length[:, None] - 2 * dot + jnp.square(seeds).sum(-1)
      return reduce(jnp.minimum(closest[:, None], jnp.maximum(distance, 0)))

    return lax.map(of_block, (self.blocks, self.lengths, closest.reshape(self.shape)))

  def totals(self, closest, seeds):
    """What each of the seeds [L, d] would leave: float32 [L]."""
    return self.add(self._with(closest, seeds, lambda distance: distance.sum(0)).sum(0))

  def closest(self, closest, seed):
    """The squared distances [n] that the seed [1, d] leaves."""
    return self._with(closest, seed, lambda distance: distance[:, 0]).reshape(-1)

  def search(self, closest, uniform):
    """The numbers of the rows where the running sum of `closest` reaches shares of its total."""
    sums = closest.reshape(-1, SEARCH).sum(1)
    if self.axis:
      sums = lax.all_gather(sums, self.axis, tiled=True)
    reached = jnp.cumsum(sums)
    target = uniform * reached[-1]
    number = jnp.minimum(jnp.searchsorted(reached, target, side="left"), len(reached) - 1)
    rest = target - jnp.where(number > 0, reached[number - 1], 0)
    place = number * SEARCH - self.offset
    here = (place >= 0) & (place < len(closest))
    inside = jnp.clip(place, 0, len(closest) - SEARCH)[:, None] + jnp.arange(SEARCH)
    inside = self.add(jnp.where(here[:, None], closest[inside], 0))
    row = (jnp.cumsum(inside, 1) < rest[:, None]).sum(1)
    # Rounding may pass the block's last row with a distance, behind which rows may not count.
    last = jnp.where(inside > 0, jnp.arange(SEARCH), 0).max(1)
    return number * SEARCH + jnp.minimum(row, last)
