"""What probes that are trained together share: their places on devices, and their first axis."""

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


def one_by_one(function: Callable, mesh: jax.sharding.Mesh | None = None) -> Callable:
  """`function(probe, *rest)` for probes [G, ...], one after another on each of the devices.

  What a probe makes on the way, as large as a batch, does not stand in memory for all of them.

  Args:
    function: of a probe's parameters and what all probes share.
    mesh: the devices that the probes are spread over, as by `spread`.
  """
  def some(probes, *rest):
    return jax.lax.map(lambda own: function(own, *rest), probes)

  if mesh is None:
    return some
  own, shared = jax.sharding.PartitionSpec(mesh.axis_names), jax.sharding.PartitionSpec()

  def everywhere(probes, *rest):
    spread_out = jax.shard_map(some, mesh=mesh, in_specs=(own, *[shared] * len(rest)),
                               out_specs=own, check_vma=False)
    return spread_out(probes, *rest)

  return everywhere


def gathered(probes, count: int):
  """The first `count` probes of a pytree [G, ...] on one device, whichever they are spread over."""
  return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[:count]), probes)
