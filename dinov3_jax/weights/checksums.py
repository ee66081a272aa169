"""Checksums of arrays that do not depend on how the arrays are laid out over devices.

Every element's bits are mixed with its index by a bijection, and the results are added modulo
2**32. Addition is associative there, so the sum is the same for every sharding; and as each element
passes through a bijection, any change of a single element changes the sum. Two such sums make 64
bits.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dinov3_jax.models.partition import path_name


def of_arrays(tree: Any) -> tuple[dict[str, str], list[str]]:
  """The checksum of every array, and which of the arrays hold values that are not finite.

  It is computed on the devices that hold the arrays; with several processes, all must call it.

  Args:
    tree: of arrays, all on the same devices or all NumPy's.

  Returns:
    By path, 16 hexadecimal digits each; and the paths of arrays with a NaN or an infinity.
  """
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  if not flat:
    return {}, []
  sharding = getattr(flat[0][1], "sharding", None)
  mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
  leaves = [leaf for _, leaf in flat]
  # NumPy's words of 8 bytes would else be rounded to 4 on their way to the device.
  wide = any(np.dtype(leaf.dtype).itemsize > 4 for leaf in leaves)
  with jax.enable_x64(True) if wide else contextlib.nullcontext():
    values = np.asarray(jax.device_get(_compiled(mesh)(leaves)))
  names = [path_name(path) for path, _ in flat]
  sums = {name: f"{first:08x}{second:08x}" for name, (first, second, _) in zip(names, values)}
  return sums, [name for name, row in zip(names, values) if row[2]]


def of_json(content: Any) -> str:
  """The checksum of what JSON can hold, which tells lists from tuples no more than JSON does."""
  text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _compiled(mesh: jax.sharding.Mesh | None):
  everywhere = mesh and NamedSharding(mesh, PartitionSpec())
  return jax.jit(lambda leaves: jnp.stack([_of_array(leaf) for leaf in leaves]),
                 out_shardings=everywhere)


def _of_array(x: jax.Array) -> jax.Array:
  """uint32 [3]: the two sums, and whether there is a value that is not finite."""
  floating = jnp.issubdtype(x.dtype, jnp.floating)
  infinite = ~jnp.isfinite(x).all() if floating else jnp.zeros((), bool)
  bits = _as_words(x)
  index = _index(bits.shape)
  mixed = _mix(bits ^ (index * np.uint32(0x9E3779B1)))
  again = _mix(mixed + index)
  return jnp.stack([mixed.sum(dtype=jnp.uint32), again.sum(dtype=jnp.uint32),
                    infinite.astype(jnp.uint32)])


def _as_words(x: jax.Array) -> jax.Array:
  """The bits of each element as one uint32, or as two on a new last axis."""
  if x.dtype == bool:
    return x.astype(jnp.uint32)
  if x.dtype.itemsize >= 4:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)
  words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
  return words.astype(jnp.uint32)


def _index(shape: Sequence[int]) -> jax.Array:
  """Every element's number in row-major order, modulo 2**32."""
  index, stride = jnp.zeros(shape, jnp.uint32), 1
  for axis in reversed(range(len(shape))):
    step = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    index, stride = index + step * np.uint32(stride % 2**32), stride * shape[axis]
  return index


def _mix(x: jax.Array) -> jax.Array:
  """The bijection of 32-bit words that ends MurmurHash3."""
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
