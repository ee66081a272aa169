"""How parameters are cut up over the devices of a mesh, by their names, and what moves when.

Axes: `fsdp` (parameters cut up, gathered when a block needs them) and `tensor` (a block's matrices
cut up, each device computing its part). A batch is cut over `data` and `fsdp`.

`rows` and `whole` tell the compiler how arrays lie in the middle of a program, on the mesh of the
context (`jax.sharding.use_abstract_mesh`). Without one they move nothing: a network need not know
whether it is spread out.
"""

import functools
import math
import re
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
    (r"(blocks|stages/\d)/mlp/(fc1|w1|w2)/kernel$", P(None, "fsdp", "tensor")),
    (r"(blocks|stages/\d)/mlp/(fc1|w1|w2)/bias$", P(None, "tensor")),
    (r"(blocks|stages/\d)/mlp/(fc2|w3)/kernel$", P(None, "tensor", "fsdp")),
    (r"(blocks|stages/\d)/.*(norm[12]?/(scale|bias)|gamma|(proj|fc2|w3)/bias)$", P()),
    (r"stages/\d/dwconv/(kernel|bias)$", P()),
    (r"patch_embed/(convs|norms|proj)/", P()),
    (r"(patch_embed|downsample/\d/conv)/kernel$", P(None, None, None, "fsdp")),
    (r"((patch_embed|downsample/\d/conv)/bias|cls_token|storage_tokens|mask_token)$", P()),
    (r"(norm|cls_norm|local_cls_norm)/(scale|bias)$", P()),
    (r"head/mlp/\d+/kernel$", P("fsdp", "tensor")),
    (r"head/mlp/\d+/bias$", P()),
    (r"head/last_layer/kernel$", P(None, ("tensor", "fsdp"))),
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
  size = lambda axes: math.prod(mesh.shape[a] for a in ([axes] if isinstance(axes, str) else axes))
  return P(*(axes if axes is None or dim % size(axes) == 0 else None
             for dim, axes in zip(shape, spec)))


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


def rows(x: jax.Array) -> jax.Array:
  """`x`, its first axis over the data shards and the others whole, where the shards divide it."""
  mesh = _mesh()
  if mesh is None or len(x) % math.prod(mesh.shape[axis] for axis in DATA_AXES):
    return x
  return jax.lax.with_sharding_constraint(x, P(DATA_AXES))


def whole(params: Any, prefix: str, dtype: jnp.dtype) -> Any:
  """Parameters as a computation takes them: in its dtype, and gathered over `fsdp`.

  They travel in that dtype. Their gradients are summed over the data shards in float32, straight
  into the part that each device keeps. Stacked blocks stay as they are, for `whole_block`.

  Args:
    params: a tree of dicts.
    prefix: what stands before their names in `RULES`.
    dtype: of the computation.
  """
  mesh = _mesh()

  def place(path, x):
    name = f"{prefix}/{path_name(path)}"
    if "/blocks/" in name:
      return x
    return x.astype(dtype) if mesh is None else _gather(spec_of(name, x.shape, mesh), dtype, x)

  return jax.tree_util.tree_map_with_path(place, params)


def whole_block(params: Any, dtype: jnp.dtype) -> Any:
  """`whole` for the parameters of one of the stacked blocks."""
  mesh = _mesh()

  def place(path, x):
    if mesh is None:
      return x.astype(dtype)
    spec = spec_of(f"blocks/{path_name(path)}", (1, *x.shape), mesh)
    return _gather(P(*spec[1:]), dtype, x)

  return jax.tree_util.tree_map_with_path(place, params)


def _mesh():
  """The mesh of the context, None if there is no other device."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 else mesh


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(spec: P, dtype: jnp.dtype, x: jax.Array) -> jax.Array:
  keep = lambda axes: tuple(a for a in ([axes] if isinstance(axes, str) else axes or ())
                            if a != "fsdp") or None
  x = jax.lax.with_sharding_constraint(x.astype(dtype), spec)
  return jax.lax.with_sharding_constraint(x, P(*map(keep, spec)))


# The constraint's own transpose would sum gradients into whole copies.
_gather.defvjp(
  lambda spec, dtype, x: (_gather(spec, dtype, x), None),
  lambda spec, dtype, _, g: (jax.lax.with_sharding_constraint(g.astype(jnp.float32), spec),))
