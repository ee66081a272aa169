"""The heads of DINO and iBOT in files of weights, such as exports of a whole training."""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinov3_jax.models.head import DINOHead
from dinov3_jax.weights import files, naming, torch_file
from dinov3_jax.weights.naming import Params

NAMES = ("dino_head", "ibot_head")
BESIDE = "heads.safetensors"  # where our exports for Hugging Face keep them
_HEAD = re.compile(rf"^(?:(.*)\.)?({'|'.join(NAMES)})\.(.+)$")
_DEPTH = 8  # of entries within each other


def sizes_of(path: str | os.PathLike, network: str = "teacher") -> dict[str, dict[str, int]]:
  """Those heads that a file of weights has, by name, as the arguments of `DINOHead`; often none.

  Arguments and errors as of `read`, but that no head must be there.
  """
  found = _arrays(path)
  arrays = _chosen(path, found, network) if found else {}
  return {name: _sizes(path, name, arrays) for name in NAMES
          if any(key.startswith(f"{name}.") for key in arrays)}


def read(path: str | os.PathLike, network: str = "teacher", names: Iterable[str] = NAMES
         ) -> tuple[dict[str, dict[str, int]], Params]:
  """The heads that a file of weights has, beside the backbone that `dinov3_jax.load` takes.

  Args:
    path: as `files.open_arrays`.
    network: "teacher" or "student", where the file has both.
    names: of the heads that are wanted, all of which must be there.

  Returns:
    By name, `dino_head` and `ibot_head`: the arguments `prototypes`, `hidden`, `bottleneck` and
    `layers` of `DINOHead`, and its parameters, float32.

  Raises:
    ValueError: there are no heads, several that may be meant, or arrays that make no head.
    FileNotFoundError: there is no such file.
  """
  arrays = _chosen(path, _arrays(path), network)
  sizes = {name: _sizes(path, name, arrays) for name in names}
  shapes = {name: _shapes(arrays[f"{name}.mlp.0.weight"].shape[1], sizes[name]) for name in names}
  arrays = {key: x for key, x in arrays.items() if key.split(".", 1)[0] in sizes}
  try:
    params = naming.unflatten(arrays, shapes)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  return sizes, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def _arrays(path: str | os.PathLike) -> dict[str, Any]:
  """Every array of a head by its full name, the entries around it among them."""
  beside = pathlib.Path(os.path.expanduser(path)) / BESIDE
  content = files.open_content(beside if beside.is_file() else path)
  found = {}

  def visit(mapping: Mapping, prefix: str, depth: int):
    for key, value in mapping.items():
      name = f"{prefix}{key}"
      if isinstance(value, Mapping) and depth < _DEPTH:
        visit(value, f"{name}.", depth + 1)
      elif hasattr(value, "shape") and _HEAD.match(name):
        found[name] = value

  visit(content, "", 0)
  return found


def _chosen(path, found: dict[str, Any], network: str) -> dict[str, np.ndarray]:
  """Those of one network, by names that begin with the head's."""
  owners = sorted({_HEAD.match(name)[1] or "" for name in found})
  if not owners:
    raise ValueError(f"{path} has no heads of DINO and iBOT: take the run that trained it, or an "
                     "export of that with --heads")
  meant = [owner for owner in owners if network in owner.split(".")] or owners
  if len(meant) > 1:
    raise ValueError(f"{path} has the heads of several networks ({', '.join(meant)}): save the one "
                     "that you want alone")
  arrays = {}
  for name, x in found.items():
    owner, head, rest = _HEAD.match(name).groups()
    if (owner or "") == meant[0]:
      bare = f"{head}.{rest}"
      arrays[bare] = x if isinstance(x, np.ndarray) else torch_file.as_numpy(bare, x)
  return arrays


def _sizes(path, head: str, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
  layers = sum(re.fullmatch(rf"{head}\.mlp\.\d+\.weight", name) is not None for name in arrays)
  names = [f"{head}.mlp.{2 * i}.weight" for i in (0, layers - 1)] + [f"{head}.last_layer.weight"]
  first, last, prototypes = (arrays.get(name) for name in names)
  wrong = [name for name, x in zip(names, (first, last, prototypes)) if x is None or x.ndim != 2]
  if wrong:
    raise ValueError(f"{path} has no whole {head}: {wrong[0]} is missing or no matrix")
  return dict(prototypes=prototypes.shape[0], hidden=first.shape[0], bottleneck=last.shape[0],
              layers=layers)


def _shapes(features: int, sizes: Mapping[str, int]) -> Params:
  make = lambda: DINOHead(features, **sizes, rngs=nnx.Rngs(0))
  return nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))
