"""The device mesh, and where states and batches lie on it; `models.partition` tells of its axes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.data.masks import masked_count
from dinov3_jax.models import partition
from dinov3_jax.models.partition import DATA_AXES, path_name, spec_of
from dinov3_jax.models.variants import stride

RULES = (*partition.RULES, (r"^(step|.*count)$", P()))


def make_mesh(config, devices: list[jax.Device] | None = None) -> Mesh:
  """The mesh ("data", "fsdp", "tensor") that `config.mesh` asks for; -1 takes what is left.

  Slices of TPUs, which only a data centre's network joins, lie along `data`: it carries nothing but
  sums of gradients.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or do not fit the slices.
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
  # Every host of GPUs counts as a slice to JAX; what joins them carries parameters, too.
  slices = len({device.slice_index for device in devices if device.platform == "tpu"
                and hasattr(device, "slice_index")}) or 1
  if sizes["data"] % slices:
    raise ValueError(f"mesh.data={sizes['data']} is no multiple of the {slices} slices: parameters "
                     "would have to cross the network between them; lower mesh.fsdp or mesh.tensor")
  of_slice = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
  split = dict(allow_split_physical_axes=True)  # 64 of a torus of 16 x 16 are 4 x 16
  if slices == 1:
    grid = mesh_utils.create_device_mesh(of_slice, devices, **split)
  else:
    grid = mesh_utils.create_hybrid_device_mesh(of_slice, (slices, 1, 1), devices, **split)
  return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def data_shards(mesh: Mesh) -> int:
  """Into how many parts a batch is split."""
  return math.prod(mesh.shape[axis] for axis in DATA_AXES)


def local_shards(mesh: Mesh) -> list[int]:
  """The data shards that this process has devices of."""
  here = [device.process_index == jax.process_index() for device in mesh.devices.flat]
  return np.flatnonzero(np.reshape(here, (data_shards(mesh), -1)).any(axis=1)).tolist()


def place_batch(batch: Any, mesh: Mesh) -> Any:
  """A batch on the devices, from what each process has of it: its `local_shards`, in order.

  Args:
    batch: arrays, one or a tree of them, whose first axis are the images.
    mesh: of the devices.

  Raises:
    ValueError: the process's shards do not divide its images.
  """
  local, layout = local_shards(mesh), batch_sharding(mesh)

  def place(x):
    rows, left = divmod(len(x), len(local))
    if left or not rows:
      raise ValueError(f"{len(x)} images cannot be split evenly over {len(local)} data shards: "
                       "take a multiple of them")

    def part(index):
      first = local.index((index[0].start or 0) // rows) * rows
      return x[first:first + rows]

    return jax.make_array_from_callback((rows * data_shards(mesh), *x.shape[1:]), layout, part)

  return jax.tree.map(place, batch)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The layout of every array of a batch: its first axis over the data shards."""
  return NamedSharding(mesh, P(DATA_AXES))


def state_sharding(mesh: Mesh, state: Any) -> Any:
  """The layout of a `TrainState`, arrays or shapes: every part is laid out as the student."""
  place = lambda path, x: NamedSharding(mesh, spec_of(path_name(path), x.shape, mesh, RULES))
  return jax.tree_util.tree_map_with_path(place, state)


def on_shards(f: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
  """Runs `f` on every data shard for itself (`jax.shard_map` over `DATA_AXES`)."""
  return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs,
                       axis_names=set(DATA_AXES), check_vma=False)


def param_specs(mesh: Mesh, params: Any) -> Any:
  """The `PartitionSpec` of every parameter."""
  return jax.tree.map(lambda x: x.spec, partition.param_sharding(mesh, params))


def abstract_state(mesh: Mesh, init: Callable[[], Any]) -> Any:
  """What `init` would return, as shapes with their layout."""
  shapes = jax.eval_shape(init)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes,
                      state_sharding(mesh, shapes))


def bytes_held(tree: Any) -> int:
  """What each device has of arrays, or of shapes with their layout."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
             for x in jax.tree.leaves(tree))


def check_memory(state: Any, available: float | None):
  """Raises a ValueError if a device's part of a state alone takes more than `available` bytes.

  Args:
    state: arrays, or shapes with their layout.
    available: on one device; None if that is not known.
  """
  held = bytes_held(state)
  if available is not None and held > available:
    raise ValueError(f"the training state takes {held / 2**30:.1f} GiB on each device, which has "
                     f"{available / 2**30:.1f} GiB: spread it over more devices with "
                     "config.mesh.fsdp=-1 and config.mesh.data=1")


def check_parts(images: int, shards: int, parts: int):
  """Raises a ValueError if a batch cannot be cut.

  Args:
    images: of a batch, over all devices.
    shards: data shards.
    parts: micro-batches.
  """
  if images % shards:
    raise ValueError(f"a batch of {images} images cannot be spread over {shards} data shards; "
                     f"take a multiple of {shards}")
  if images // shards % parts:
    raise ValueError(f"train.micro_batches={parts} does not divide the {images // shards} images "
                     f"that each of {shards} data shards has of a batch of {images}: take a "
                     f"divisor, or a batch that is a multiple of {shards * parts}")


def abstract_batch(config, mesh: Mesh, resolution: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
  """The batch that the data pipeline makes for a config, as shapes with their layout.

  Args:
    config: of the run.
    mesh: of the devices.
    resolution: which entry of the lists of crop sizes.

  Raises:
    ValueError: the data shards do not divide the images, or the micro-batches a shard's.
  """
  crops, patch, images = config.crops, stride(config.model), config.train.batch_size
  shards = data_shards(mesh) * config.train.micro_batches  # masks are made for each part
  check_parts(images, data_shards(mesh), config.train.micro_batches)
  big, small, gram = (sizes[resolution] // patch * patch for sizes in (
    crops.global_sizes, crops.local_sizes, crops.gram_sizes))
  patches = (big // patch) ** 2
  masked = masked_count(2 * images // shards, patches, config.masks.probability, config.masks.ratio)
  shapes = dict(
    global_crops=((images, 2, big, big, 3), np.uint8),
    local_crops=((images, crops.locals, small, small, 3), np.uint8),
    masks=((images, 2, patches), np.bool_), mask_indices=((shards, masked), np.int32),
    mask_weights=((shards, masked), np.float32))
  if gram:
    shapes["gram_crops"] = (images, 2, gram, gram, 3), np.uint8
  layout = batch_sharding(mesh)
  return {name: jax.ShapeDtypeStruct(*shape, sharding=layout) for name, shape in shapes.items()}
