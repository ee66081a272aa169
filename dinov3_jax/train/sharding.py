"""The device mesh, and where each array lies on it.

Axes: `data` (copies of the parameters), `fsdp` (parameters cut up, gathered when a block needs them)
and `tensor` (a block's matrices cut up, each device computing its part). A batch is split over the
first two, parameters over the last two.
"""

import math
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA_AXES = ("data", "fsdp")

# The first pattern found in a parameter's path decides. Stacked blocks have a leading depth axis.
RULES = (
    (r"blocks/attn/qkv/kernel$", P(None, "fsdp", None, "tensor")),
    (r"blocks/attn/qkv/bias$", P(None, None, "tensor")),
    (r"blocks/attn/proj/kernel$", P(None, "tensor", "fsdp")),
    (r"blocks/mlp/(fc1|w1|w2)/kernel$", P(None, "fsdp", "tensor")),
    (r"blocks/mlp/(fc1|w1|w2)/bias$", P(None, "tensor")),
    (r"blocks/mlp/(fc2|w3)/kernel$", P(None, "tensor", "fsdp")),
    (r"blocks/.*(norm[12]/(scale|bias)|gamma|(proj|fc2|w3)/bias)$", P()),
    (r"patch_embed/kernel$", P(None, None, None, "fsdp")),
    (r"(patch_embed/bias|cls_token|storage_tokens|mask_token)$", P()),
    (r"(norm|cls_norm|local_cls_norm)/(scale|bias)$", P()),
    (r"head/mlp/\d+/kernel$", P("fsdp", "tensor")),
    (r"head/mlp/\d+/bias$", P()),
    (r"head/last_layer/kernel$", P(None, ("fsdp", "tensor"))),
    (r"^(step|.*count)$", P()),
)


def make_mesh(config, devices: list[jax.Device] | None = None) -> Mesh:
  """The mesh ("data", "fsdp", "tensor") that `config.mesh` asks for; -1 takes what is left.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dict(config.mesh)
  free = [axis for axis, size in sizes.items() if size == -1]
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if len(free) == 1 and len(devices) % fixed == 0:
    sizes[free[0]] = len(devices) // fixed
  if math.prod(sizes.values()) != len(devices):
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


def path_name(path) -> str:
  """A tree path as `student/backbone/blocks/...`."""
  return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", ""))))
                  for key in path)


def spec_of(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  """How the parameter or optimizer array `name` is cut; an axis that the devices do not divide
  stays whole.

  Raises:
    ValueError: no rule covers the name.
  """
  for pattern, spec in RULES:
    if re.search(pattern, name):
      break
  else:
    raise ValueError(f"no sharding rule covers {name}: add one to RULES")
  size = lambda axes: math.prod(mesh.shape[a] for a in ([axes] if isinstance(axes, str) else axes))
  return P(*(axes if axes is None or dim % size(axes) == 0 else None
             for dim, axes in zip(shape, spec)))


def state_sharding(mesh: Mesh, state: Any) -> Any:
  """The layout of a `TrainState` (arrays or shapes): moments, EMA and Gram teacher as the student."""
  place = lambda path, x: NamedSharding(mesh, spec_of(path_name(path), x.shape, mesh))
  return jax.tree_util.tree_map_with_path(place, state)
