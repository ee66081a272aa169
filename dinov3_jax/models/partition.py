"""How parameters are cut up over the devices of a mesh, by their names, and what moves when.

Axes: `data` (copies of the parameters), `fsdp` (parameters cut up, gathered when a block needs
them) and `tensor` (a block's matrices cut up, each device computing its part). A batch is cut over
the first two, parameters over the last two.

A training step runs under `jax.shard_map` over these two: whatever is done for a shard of the batch
stays on its device, and `whole` alone moves parameters. `tensor` is left to the compiler.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA_AXES = ("data", "fsdp")

# The first pattern found in a parameter's path decides. Stacked blocks have a leading depth axis.
RULES = (
    (r"blocks/attn/qkv/kernel$", P(None, "fsdp", None, "tensor")),
    (r"blocks/attn/qkv/bias$", P(None, None, "tensor")),
    (r"blocks/attn/proj/kernel$", P(None, "tensor", "fsdp")),
    (r"blocks/attn/qkv_adapter/a$", P(None, "fsdp")),
    (r"blocks/attn/qkv_adapter/b$", P(None, None, None, "tensor")),
    (r"blocks/attn/proj_adapter/a$", P(None, "tensor")),
    (r"blocks/attn/proj_adapter/b$", P(None, None, "fsdp")),
    (r"(blocks|stages/\d)/mlp/(fc1|w1|w2)/kernel$", P(None, "fsdp", "tensor")),
    (r"(blocks|stages/\d)/mlp/(fc1|w1|w2)/bias$", P(None, "tensor")),
    (r"(blocks|stages/\d)/mlp/(fc2|w3)/kernel$", P(None, "tensor", "fsdp")),
    (r"(blocks|stages/\d)/.*(norm[12]?/(scale|bias)|gamma|(proj|fc2|w3)/bias)$", P()),
    (r"stages/\d/dwconv/(kernel|bias)$", P()),
    (r"patch_embed/(convs|norms|proj)/", P()),
    (r"(patch_embed|downsample/\d/conv)/kernel$", P(None, None, None, "fsdp")),
    (r"((patch_embed|downsample/\d/conv)/bias|cls_token|storage_tokens|mask_token)$", P()),
    (r"(norm|cls_norm|local_cls_norm|ln_final)/(scale|bias)$", P()),
    (r"token_embedding$", P("fsdp")),
    (r"(positional_embedding|logit_scale)$", P()),
    (r"linear_projection/kernel$", P("fsdp")),
    (r"head/mlp/\d*[02468]/kernel$", P("fsdp", "tensor")),
    (r"head/mlp/\d*[13579]/kernel$", P("tensor", "fsdp")),
    (r"head/mlp/\d+/bias$", P()),
    (r"head/last_layer/kernel$", P(None, ("fsdp", "tensor"))),
)


def path_name(path) -> str:
  """A tree path as `student/backbone/blocks/...`."""
  return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", ""))))
                  for key in path)


def spec_of(name: str, shape: tuple[int, ...], mesh: Mesh, rules=RULES) -> P:
  """How the array `name` is cut; an axis that the devices do not divide stays whole.

  Raises:
    ValueError: no rule covers the name.
  """
  spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
  if spec is None:
    raise ValueError(f"no sharding rule covers {name}: add one to RULES")
  size = lambda entry: math.prod(mesh.shape[a] for a in axes_of(entry))
  return P(*(entry if dim % size(entry) == 0 else None for dim, entry in zip(shape, spec)))


def param_sharding(mesh: Mesh, params: Any) -> Any:
  """The layout of a network's parameters (arrays or shapes).

  Raises:
    ValueError: the mesh lacks an axis.
  """
  lacking = {"fsdp", "tensor"} - set(mesh.axis_names)
  if lacking:
    raise ValueError(f"the mesh has no axis {' or '.join(sorted(lacking))}: name its axes data, "
                     "fsdp and tensor; each may be of size 1")
  place = lambda path, x: NamedSharding(mesh, spec_of(path_name(path), x.shape, mesh))
  return jax.tree_util.tree_map_with_path(place, params)


def whole(params: Any, layout: Any, dtype: jnp.dtype) -> Any:
  """Parameters as a computation takes them: in its dtype, and none of them cut over `fsdp`.

  For use inside `jax.shard_map` over `DATA_AXES`. They are gathered in that dtype; the way back
  takes the mean of the shards' gradients in float32, straight into the part that each device keeps.

  Args:
    params: a tree of arrays.
    layout: their `PartitionSpec`s, a tree alike; None where nothing is spread out.
    dtype: of the computation.
  """
  if layout is None:
    return jax.tree.map(lambda x: x.astype(dtype), params)
  return jax.tree.map(lambda x, spec: _gather(spec, jnp.dtype(dtype), x), params, layout)


def mean_over_shards(gradients: Any, layout: Any) -> Any:
  """The backward pass of `whole`: of each gradient of a whole parameter, the mean over the data
  shards in float32, and of that the part that a device keeps.

  Args:
    gradients: a tree of arrays.
    layout: their `PartitionSpec`s, a tree alike.
  """
  return jax.tree.map(lambda g, spec: _mean(spec, g), gradients, layout)


def shard_keys(key: jax.Array, shards: int) -> jax.Array:
  """A random key for each of this device's data shards, different on every device."""
  axes = [axis for axis in DATA_AXES if axis in jax.sharding.get_abstract_mesh().manual_axes]
  first = jax.lax.axis_index(axes) * shards if axes else 0
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(shards))


def several(axes: tuple[str, ...] = DATA_AXES) -> tuple[str, ...]:
  """Those of the axes that have more than one device, for use inside `jax.shard_map`.

  Where blocks are cut over `tensor` alone, XLA refuses a sum over axes of one device each.
  """
  return tuple(axis for axis in axes if jax.lax.axis_size(axis) > 1)


def is_cut(spec: P) -> bool:
  """Whether an array of this layout is cut over several `fsdp` devices; inside `jax.shard_map`."""
  return _fsdp_axis(spec) is not None


def local_spec(spec: P) -> P:
  """Of a layout, what `jax.shard_map` over `DATA_AXES` should know."""
  return P(*(tuple(a for a in axes if a in DATA_AXES) or None for axes in map(axes_of, spec)))


def axes_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """The mesh axes that an entry of a `PartitionSpec` names."""
  return (entry,) if isinstance(entry, str) else entry or ()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(spec: P, dtype: jnp.dtype, x: jax.Array) -> jax.Array:
  axis = _fsdp_axis(spec)

  def gather(x):
    x = x.astype(dtype)
    return x if axis is None else jax.lax.all_gather(x, "fsdp", axis=axis, tiled=True)

  return _of_tensor_part(gather, spec)(x)


def _mean(spec: P, g: jax.Array) -> jax.Array:
  axis = _fsdp_axis(spec)
  names = ("data",) if axis is not None else DATA_AXES

  def mean(g):
    g = g.astype(jnp.float32)
    if axis is not None:
      g = jax.lax.psum_scatter(g, "fsdp", scatter_dimension=axis, tiled=True)
      g /= jax.lax.axis_size("fsdp")
    return jax.lax.pmean(g, several(names))

  return _of_tensor_part(mean, spec)(g)


_gather.defvjp(lambda spec, dtype, x: (_gather(spec, dtype, x), None),
               lambda spec, dtype, _, g: (_mean(spec, g),))


def _fsdp_axis(spec: P) -> int | None:
  """Which axis of an array is cut over several `fsdp` devices."""
  cut = (i for i, axes in enumerate(spec) if "fsdp" in axes_of(axes))
  return next(cut, None) if jax.lax.axis_size("fsdp") > 1 else None


def _of_tensor_part(f: Callable[[jax.Array], jax.Array], spec: P
                    ) -> Callable[[jax.Array], jax.Array]:
  """`f` on each device's part over `tensor`: left to the compiler, it would be put together first.

  Prototypes, cut over both axes, come out in another order, the same in student and teacher.
  """
  cut = P(*("tensor" if "tensor" in axes_of(axes) else None for axes in spec))
  if jax.sharding.get_abstract_mesh().shape["tensor"] == 1:
    return f
  return jax.shard_map(f, in_specs=cut, out_specs=cut, axis_names={"tensor"}, check_vma=False)
