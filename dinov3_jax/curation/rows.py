"""Rows of features over the devices: one axis, equal parts, and marks for rows that do not count.

Every algorithm of this package sees features as chunks: an array whose rows are sharded over a
one-dimensional mesh, filled up so that all devices have the same number of whole search blocks. A
row that only fills up, and a row with a number that is not finite, is not `valid`: it belongs to no
cluster, is never a seed, and has no neighbours.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "rows"
SHARDED = P(AXIS)
SEARCH = 256  # rows whose distances k-means++ sums before it searches among the sums
ROW_BLOCK = 4096  # rows that are compared with the centroids at once


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Some rows on the devices.

  Attributes:
    x: [n, d], sharded over its rows, zeros where not valid; any float dtype.
    valid: bool [n], sharded alike.
    start: the number of the first row.
    rows: how many there are, the first ones of the n.
  """

  x: jax.Array
  valid: jax.Array
  start: int
  rows: int


class Points(Protocol):
  """What is clustered: an array in memory (`ArrayPoints`) or shards on disk (`StorePoints`)."""

  mesh: Mesh
  rows: int
  dim: int

  def chunks(self, start: int = 0) -> Iterator[Chunk]:
    """The chunks from number `start` on, in order; all have one shape."""

  def sizes(self) -> list[int]:
    """The rows of each chunk."""

  def finite(self) -> np.ndarray:
    """Which rows count: bool [rows]."""

  def take(self, indices: np.ndarray) -> np.ndarray:
    """These rows as an array on the host, [len(indices), d]."""


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with the single axis "rows" over the devices (None: all there are)."""
  devices = jax.devices() if devices is None else list(devices)
  return jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)


def padded(rows: int, mesh: Mesh) -> int:
  """How many rows a chunk of `rows` is filled up to: whole row blocks on every device."""
  return -(-rows // (mesh.size * row_block(rows, mesh))) * mesh.size * row_block(rows, mesh)


def row_block(rows: int, mesh: Mesh) -> int:
  """Rows that are compared at once, a multiple of `SEARCH`."""
  of_device = -(-max(rows, 1) // mesh.size)
  return min(ROW_BLOCK, -(-of_device // SEARCH) * SEARCH)


def place(array: np.ndarray, mesh: Mesh, start: int = 0, capacity: int | None = None) -> Chunk:
  """Puts an array on the devices.

  Args:
    array: [n, d], also one on disk; float64 becomes float32. A process reads the rows of its own
      devices alone.
    mesh: from `make_mesh`.
    start: the number of its first row.
    capacity: fill up as if there were so many rows, so that arrays of several lengths have one
      shape and are compiled for once; None takes n.

  Raises:
    ValueError: an array that has not two dimensions.
  """
  if array.ndim != 2:
    raise ValueError(f"features must be [rows, dimensions], not {list(array.shape)}")
  total = padded(max(len(array), capacity or 0), mesh)

  @functools.cache
  def part(begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.asarray(array[begin:end])
    x = np.zeros((end - begin, rows.shape[1]), _dtype(rows.dtype))
    valid = np.zeros(len(x), bool)
    x[:len(rows)] = rows
    valid[:len(rows)] = is_finite(rows)
    x[~valid] = 0
    return x, valid

  def of_device(which: int, index: tuple[slice, ...]) -> np.ndarray:
    return part(*index[0].indices(total)[:2])[which]

  sharding = NamedSharding(mesh, SHARDED)
  x, valid = (jax.make_array_from_callback(shape, sharding, functools.partial(of_device, which))
              for which, shape in enumerate([(total, array.shape[1]), (total,)]))
  return Chunk(x, valid, start, len(array))


def _dtype(dtype: np.dtype) -> np.dtype:
  return np.dtype(np.float32) if dtype.itemsize > 4 or dtype.kind in "iub" else dtype


def is_finite(array: np.ndarray) -> np.ndarray:
  """Which rows of [n, d] are finite, also once they are float32: bool [n]."""
  good = np.empty(len(array), bool)
  for i in range(0, len(array), 2**14):  # no copy of everything
    with np.errstate(over="ignore"):
      block = array[i:i + 2**14].astype(_dtype(array.dtype), copy=False)
    good[i:i + 2**14] = np.isfinite(block).all(1)
  return good


def put(array: np.ndarray, mesh: Mesh, spec: P = SHARDED) -> jax.Array:
  """An array that every process has, laid out over the devices of all of them."""
  sharding = NamedSharding(mesh, spec)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(array: jax.Array) -> np.ndarray:
  """A sharded array as a whole, in every process."""
  if not array.is_fully_addressable:
    array = _replicate(array.sharding.mesh)(array)
  return np.asarray(array)


@functools.cache
def _replicate(mesh: Mesh):
  return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))


class ArrayPoints:
  """An array in memory as `Points`: one chunk, which stays on the devices.

  Args:
    array, mesh, capacity: as for `place`.
  """

  def __init__(self, array: np.ndarray, mesh: Mesh, capacity: int | None = None):
    self._array, self.mesh = array, mesh
    self._chunk = place(array, mesh, capacity=capacity)
    self.rows, self.dim = array.shape

  def chunks(self, start: int = 0) -> Iterator[Chunk]:
    return iter([self._chunk][start:])

  def sizes(self) -> list[int]:
    return [self.rows]

  def finite(self) -> np.ndarray:
    return is_finite(self._array)

  def take(self, indices: np.ndarray) -> np.ndarray:
    return self._array[indices]
