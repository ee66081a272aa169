"""Arrays on their way from files to devices, one at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from dinov3_jax.weights.naming import Entry, Params, by_path


def fill(shapes: Params, wanted: list[Entry], arrays: dict[str, np.ndarray], dtype: DTypeLike,
         shardings: Params | None) -> Params:
  """The parameters that `arrays` make, each where it belongs.

  The host holds one array at a time, and of that only what its own devices keep.

  Args:
    shapes: the tree to fill.
    wanted: its entries, `arrays` having passed their `check`.
    arrays: by name; views of mapped files, taken out one by one so that the files can go.
    dtype: of the result.
    shardings: as `shapes`; None leaves all on the default device.
  """
  shape_of, sharding_of, filled = by_path(shapes), by_path(shardings), {}
  entries = {entry.name: entry for entry in wanted if not entry.copy_of}
  for name in list(arrays):
    array, entry = arrays.pop(name), entries.get(name)
    if entry is None:
      continue
    path, sharding = entry.path, sharding_of.get(entry.path)
    value = _place(entry.to_ours(array), dtype, sharding)
    shape = shape_of[path].shape
    if entry.shape != shape:
      stack = filled.pop(path, None)
      stack = jnp.zeros(shape, dtype, device=sharding) if stack is None else stack
      value = _insert(stack, value, entry.start, sharding)
      del stack
    # Without waiting, the host would hold what devices have not yet taken.
    filled[path] = jax.block_until_ready(value)
  return jax.tree_util.tree_map_with_path(
      lambda path, _: filled[tuple(key.key for key in path)], shapes)


def _place(value: np.ndarray, dtype, sharding: Sharding | None) -> jax.Array:
  """On the device, or each device's part on it; nothing else is read."""
  part = lambda index: np.array(value[index], dtype, order="C")
  if sharding is None:
    return jnp.asarray(part(...))
  return jax.make_array_from_callback(value.shape, sharding, part)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="sharding")
def _insert(stack: jax.Array, value: jax.Array, start: tuple, sharding: Sharding | None
            ) -> jax.Array:
  """`stack` with the box that begins at `start` set to `value`, in its own memory."""
  stack = jax.lax.dynamic_update_slice(stack, value, start)
  return stack if sharding is None else jax.lax.with_sharding_constraint(stack, sharding)
