"""What probes that are trained together share: their places on devices, and their axis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def spread(grid: np.ndarray, mesh: jax.sharding.Mesh | None
           ) -> tuple[np.ndarray, Callable[[np.ndarray], jax.Array]]:
  """A grid that devices can share, and what puts an array with an entry for each probe on them.

  Args:
    grid: [G, ...], a row for each probe.
    mesh: the devices; None: the first one alone.

  Returns:
    The grid, its first rows repeated until each device has as many, and the placement.
  """
  if mesh is None:
    return grid, jnp.asarray
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
  count = -(-len(grid) // mesh.size) * mesh.size
  return np.resize(grid, (count, *grid.shape[1:])), lambda x: jax.device_put(x, sharding)


def along(x: jax.Array, like: jax.Array) -> jax.Array:
  """An entry for each probe, [G], against an array [G, ...]."""
  return x.reshape(-1, *[1] * (like.ndim - 1))
