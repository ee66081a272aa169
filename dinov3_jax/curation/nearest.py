"""The nearest centroid of every row, and the sums of the rows of every centroid.

Both rows and centroids are sharded. The centroids go round the devices in a ring, and each device
keeps the least distance so far, and whose it is: no array has rows and centroids for its axes, and
neither rows nor centroids are ever whole on one device. What a device sends is the least possible,
each centroid once, and it is on its way while the ones before are compared.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dinov3_jax.curation.rows import AXIS, Chunk, put, row_block

CENTROID_BLOCK = 4096  # centroids that a block of rows is compared with at once
SUM_BYTES = 4 * 2**30  # of the sums of all centroids that stand on a device before they are sent
NONE = np.iinfo(np.int32).max


class Nearest(NamedTuple):
  """For each row of a chunk: its centroid (-1 where not valid) and the squared distance to it.

  Attributes:
    cluster: int32 [n].
    distance: float32 [n], the sum of squared differences.
  """

  cluster: jax.Array
  distance: jax.Array


class Sums(NamedTuple):
  """For each centroid, sharded like `Centroids.c`.

  Attributes:
    total: float32 [k', d], the sum of its rows.
    count: int32 [k'], how many rows it has.
  """

  total: jax.Array
  count: jax.Array


class Centroids(NamedTuple):
  """Centroids over the devices.

  Attributes:
    c: float32 [k', d], sharded over its rows and filled up with zeros.
    k: how many count.
  """

  c: jax.Array
  k: int


def place_centroids(array: np.ndarray, mesh: Mesh) -> Centroids:
  """Puts centroids [k, d] on the devices, in whole blocks on each."""
  array = np.asarray(array, np.float32)
  fill = padded_centroids(len(array), mesh.size) - len(array)
  return Centroids(put(np.pad(array, ((0, fill), (0, 0))), mesh), len(array))


def padded_centroids(k: int, devices: int) -> int:
  """To how many k centroids are filled up: whole blocks on every device."""
  of_device = -(-k // devices)
  blocks = -(-of_device // CENTROID_BLOCK)
  block = -(-of_device // blocks)
  if blocks > 1:
    block = -(-block // 8) * 8  # the rows of a tile of float32 on a TPU
  return block * blocks * devices


def nearest(chunk: Chunk, centroids: Centroids, mesh: Mesh, cosine: bool = False) -> Nearest:
  """The nearest centroid of each row, the lowest of those at a tie.

  Distances are compared as `|c|^2 - 2 x.c` in float32 and as such never clipped. Where all of it is
  exact, as on small integers, so are ties.

  Args:
    chunk: the rows.
    centroids: see `place_centroids`.
    mesh: of both.
    cosine: the distance is 2 - 2 x.c, for rows of length 1, and not the squared Euclidean one.
      Centroids count as they are: the shorter ones, of rows that differ more, are farther away.
  """
  return _nearest(mesh, centroids.k, row_block(len(chunk.x), mesh), cosine)(
    chunk.x, chunk.valid, centroids.c)


@functools.cache
def _nearest(mesh: Mesh, k: int, block: int, cosine: bool):
  body = functools.partial(nearest_body, k=k, devices=mesh.size, block=block, cosine=cosine)
  return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P(AXIS), out_specs=Nearest(P(AXIS),
                                                                                  P(AXIS))))


def nearest_body(x, valid, c, *, k: int, devices: int, block: int, cosine: bool) -> Nearest:
  """`nearest` on one device: its rows x [n, d] and valid [n], its centroids c [k' / devices, d]."""
  n, own = len(x), len(c)
  block = next(b for b in range(min(block, n), 0, -1) if n % b == 0)
  column = own // -(-own // CENTROID_BLOCK)
  blocks = x.reshape(n // block, block, -1)
  me = lax.axis_index(AXIS)
  varying = lambda value: lax.pcast(value, AXIS, to="varying")
  start = tuple(varying(jnp.full(blocks.shape[:2], value, dtype)) for value, dtype in (
    (np.inf, jnp.float32), (NONE, jnp.int32), (np.inf, jnp.float32)))

  def compare(c, first, best):
    """The best of `best` and the centroids `c`, whose numbers begin at `first`."""
    parts = c.reshape(own // column, column, -1)
    number = jnp.arange(own, dtype=jnp.int32).reshape(-1, column)
    length = jnp.where(first + number < k, 0 if cosine else jnp.square(parts).sum(-1), np.inf)

    def row_block_(_, arguments):
      rows, best = arguments
      rows = rows.astype(jnp.float32)

      def centroid_block(best, part):
        part, length, number = part
        score = length - 2 * jnp.matmul(rows, part.T, precision="highest")
        least = score.min(1)
        # An argmin is several times slower than two plain minima, on CPUs.
        index = jnp.where(score == least[:, None], number, NONE).min(1)
        return closer(best, (least, index)), None

      none = varying(jnp.full(block, np.inf)), varying(jnp.full(block, NONE, jnp.int32))
      (least, index), _ = lax.scan(centroid_block, none, (parts, length, number))
      of = c[jnp.minimum(index, own - 1)]
      distance = 2 - 2 * (rows * of).sum(-1) if cosine else jnp.square(rows - of).sum(-1)
      index = jnp.where(index == NONE, NONE, first + index)
      return None, closer(best, (least, index, distance))

    return lax.scan(row_block_, None, (blocks, best))[1]

  def turn(step, carry):
    c, best = carry
    following = lax.ppermute(c, AXIS, [(i, (i - 1) % devices) for i in range(devices)])
    return following, compare(c, (me + step) % devices * own, best)

  if devices == 1:
    best = compare(c, 0, start)
  else:  # the last centroids need not be sent on
    c, best = lax.fori_loop(0, devices - 1, turn, (c, start))
    best = compare(c, (me + devices - 1) % devices * own, best)
  _, index, distance = (value.reshape(n) for value in best)
  return Nearest(jnp.where(valid, index, -1), jnp.where(valid, distance, 0))


def closer(a: tuple, b: tuple) -> tuple:
  """Of two (score, number, ...) the one of the lower score, or of the lower number at a tie."""
  first = (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
  return tuple(jnp.where(first, x, y) for x, y in zip(a, b))


def sums(chunk: Chunk, cluster: jax.Array, k: int, mesh: Mesh) -> Sums:
  """The sum and the number of the rows of each of k clusters; -1 is none."""
  return _sums(mesh, k, row_block(len(chunk.x), mesh))(chunk.x, cluster)


@functools.cache
def _sums(mesh: Mesh, k: int, block: int):
  body = functools.partial(sums_body, k=padded_centroids(k, mesh.size), devices=mesh.size,
                           block=block)
  return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P(AXIS),
                               out_specs=Sums(P(AXIS), P(AXIS))))


def sums_body(x, cluster, *, k: int, devices: int, block: int) -> Sums:
  """`sums` on one device, for k filled up.

  A block of rows is summed before it is added, which keeps float32 precise. Sums that are large
  altogether are made and sent for some columns at a time.
  """
  n, dim = x.shape
  block = next(b for b in range(min(block, n), 0, -1) if n % b == 0)
  bucket = jnp.where(cluster < 0, k, cluster).reshape(-1, block)
  columns = dim if 4 * k * dim <= SUM_BYTES else max(SUM_BYTES // (4 * k) // 128 * 128, 128)

  def send(value):
    """The sum over devices, to each of them its own part.

    A reduce-scatter would say the same, but compilers make of it an all-reduce, which sends twice
    as much, and add in an order of their choice.
    """
    parts = value.reshape(devices, k // devices, *value.shape[1:])
    return lax.all_to_all(parts, AXIS, 0, 0).sum(0)

  def total(part):
    def add(total, rows):
      part, bucket = rows
      return total.at[bucket].add(part.astype(jnp.float32), mode="drop"), None

    zero = lax.pcast(jnp.zeros((k, part.shape[1]), jnp.float32), AXIS, to="varying")
    return send(lax.scan(add, zero, (part.reshape(-1, block, part.shape[1]), bucket))[0])

  totals = [total(x[:, i:i + columns]) for i in range(0, dim, columns)]
  count = jax.ops.segment_sum(jnp.ones(n, jnp.int32), bucket.reshape(n), k)
  return Sums(jnp.concatenate(totals, 1), send(count))
