"""How parameters are cut up over the devices of a mesh, by their names.

Axes: `fsdp` (parameters cut up, gathered when a block needs them) and `tensor` (a block's matrices
cut up, each device computing its part).
"""

import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

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
    (r"(patch_embed|downsample/\d/conv)/kernel$", P(None, None, None, "fsdp")),
    (r"((patch_embed|downsample/\d/conv)/bias|cls_token|storage_tokens|mask_token)$", P()),
    (r"(norm|cls_norm|local_cls_norm)/(scale|bias)$", P()),
    (r"head/mlp/\d+/kernel$", P("fsdp", "tensor")),
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
