"""The device mesh, and where each array lies on it.

Axes: `data` (copies of the parameters), `fsdp` (parameters cut up, gathered when a block needs
them) and `tensor` (a block's matrices cut up, each device computing its part). A batch is split
over the first two, parameters over the last two.
"""

import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.models import partition
from dinov3_jax.models.partition import path_name, spec_of

DATA_AXES = ("data", "fsdp")

RULES = (*partition.RULES, (r"^(step|.*count)$", P()))


def make_mesh(config, devices: list[jax.Device] | None = None) -> Mesh:
  """The mesh ("data", "fsdp", "tensor") that `config.mesh` asks for; -1 takes what is left.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dict(config.mesh)
  free = [axis for axis, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if len(free) == 1 and fixed > 0 and len(devices) % fixed == 0:
    sizes[free[0]] = len(devices) // fixed
  if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
    asked = " x ".join(f"{axis}={size}" for axis, size in dict(config.mesh).items())
    raise ValueError(f"the mesh {asked} does not match {len(devices)} devices: "
                     "set config.mesh so that its sizes multiply to that, or one of them to -1")
  return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices,
                       axis_types=(AxisType.Auto,) * len(sizes))


def data_shards(mesh: Mesh) -> int:
  """Into how many parts a batch is split."""
  return math.prod(mesh.shape[axis] for axis in DATA_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The layout of every array of a batch: its first axis over the data shards."""
  return NamedSharding(mesh, P(DATA_AXES))


def state_sharding(mesh: Mesh, state: Any) -> Any:
  """The layout of a `TrainState`, arrays or shapes: every part is laid out as the student."""
  place = lambda path, x: NamedSharding(mesh, spec_of(path_name(path), x.shape, mesh, RULES))
  return jax.tree_util.tree_map_with_path(place, state)
