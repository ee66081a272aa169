"""What the parameters of a ConvNeXt are called here, in the reference and on Hugging Face."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

Naming = Literal["official", "huggingface"]


class Name(NamedTuple):
  """One of their arrays: the parameter `path` of ours, or slice `layer` of a stacked one."""
  path: tuple[str, ...]
  layer: int | None
  official: str
  huggingface: str


# Ours, the reference's and Hugging Face's; a kernel's axes are (out, in, ...) there, last in, out
# here, in any number of dimensions.
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
BLOCK = {
  "dwconv": ("dwconv", "depthwise_conv"),
  "norm": ("norm", "layer_norm"),
  "mlp/fc1": ("pwconv1", "pointwise_conv1"),
  "mlp/fc2": ("pwconv2", "pointwise_conv2"),
}


def names(depths: Sequence[int]) -> list[Name]:
  """Every parameter of a ConvNeXt with `depths` blocks in its stages."""
  result = []

  def module(ours, kind, official, huggingface, layer=None):
    for leaf in (kind, "bias"):
      result.append(Name((*ours.split("/"), leaf), layer, f"{official}.{LEAVES[leaf]}",
                         f"{huggingface}.{LEAVES[leaf]}"))

  for s, depth in enumerate(depths):
    for i, part in enumerate(("conv", "norm") if s == 0 else ("norm", "conv")):
      module(f"downsample/{s}/{part}", "kernel" if part == "conv" else "scale",
             f"downsample_layers.{s}.{i}", f"stages.{s}.downsample_layers.{i}")
    for j in range(depth):
      official, huggingface = f"stages.{s}.{j}", f"stages.{s}.layers.{j}"
      for ours, theirs in BLOCK.items():
        module(f"stages/{s}/{ours}", "scale" if ours == "norm" else "kernel",
               f"{official}.{theirs[0]}", f"{huggingface}.{theirs[1]}", j)
      result.append(Name(("stages", str(s), "ls", "gamma"), j, f"{official}.gamma",
                         f"{huggingface}.gamma"))
  module("norm", "scale", "norm", "layer_norm")
  return result


def from_arrays(arrays: Mapping[str, np.ndarray], depths: Sequence[int],
                naming: Naming) -> dict:
  """Their arrays as our nested dict of parameters.

  The reference stores its last norm twice, as `norm` and `norms.3`; the second must be the same or
  missing.

  Raises:
    ValueError: if keys are missing, or left over; it lists them all.
  """
  table = names(depths)
  keys = {getattr(name, naming) for name in table}
  aliases = {f"norms.3.{leaf}": f"norm.{leaf}" for leaf in ("weight", "bias")}
  aliases = {a: key for a, key in aliases.items() if naming == "official" and a in arrays}
  unequal = [a for a, key in aliases.items()
             if key in arrays and not np.array_equal(arrays[a], arrays[key])]
  missing, unused = sorted(keys - set(arrays)), sorted(set(arrays) - keys - set(aliases))
  if missing or unused or unequal:
    raise ValueError(f"this is no ConvNeXt with depths {tuple(depths)}: missing {missing}, unknown "
                     f"{unused}, unlike the final norm {unequal}")
  stacks: dict[tuple, list] = {}
  for name in table:
    array = np.asarray(arrays[getattr(name, naming)])
    stacks.setdefault(name.path, []).append(_ours(array))
  params: dict = {}
  for path, layers in stacks.items():
    node = params
    for part in path[:-1]:
      node = node.setdefault(part, {})
    node[path[-1]] = np.stack(layers) if path[0] == "stages" else layers[0]
  return params


def to_arrays(params: Mapping, depths: Sequence[int], naming: Naming) -> dict[str, np.ndarray]:
  """Our nested dict as their arrays; the way back of `from_arrays`, exact."""
  arrays = {}
  for name in names(depths):
    node = params
    for part in name.path:
      node = node[part]
    node = np.asarray(node)
    arrays[getattr(name, naming)] = _theirs(node if name.layer is None else node[name.layer])
  if naming == "official":
    arrays |= {f"norms.3.{leaf}": arrays[f"norm.{leaf}"] for leaf in ("weight", "bias")}
  return arrays


def _ours(array: np.ndarray) -> np.ndarray:
  return np.moveaxis(array, (1, 0), (-2, -1)) if array.ndim > 1 else array


def _theirs(array: np.ndarray) -> np.ndarray:
  return np.moveaxis(array, (-2, -1), (1, 0)) if array.ndim > 1 else array
