"""Our parameter trees, and the flat names and layouts that PyTorch code gives them.

Ours and theirs differ in names, in the axes' order, and in that we stack a transformer's blocks.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

Params = dict[str, Any]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of their arrays, and where it stands in our tree.

  Attributes:
    name: their name.
    path: our path.
    index: place on the leading axis of a stacked parameter; None if not stacked.
    shape: our shape, without that axis.
    layout: how the axes are ordered; see `to_theirs`.
  """

  name: str
  path: tuple[str, ...]
  index: int | None
  shape: Shape
  layout: str


def layout_of(path: tuple[str, ...]) -> str:
  """The name of the layout of a parameter: how its axes change on the way."""
  if "qkv" in path:
    return "qkv_" + path[-1]
  if path[-1] == "kernel":
    return "patch" if "patch_embed" in path else "matrix"
  return "same"


def to_theirs(value: np.ndarray, layout: str) -> np.ndarray:
  """An array of ours in their layout."""
  match layout:
    case "matrix":
      return value.T
    case "patch":
      return value.transpose(3, 2, 0, 1)
    case "qkv_kernel":
      return value.reshape(value.shape[0], -1).T
    case "qkv_bias":
      return value.reshape(-1)
  return value


def to_ours(value: np.ndarray, layout: str, shape: Shape) -> np.ndarray:
  """An array of theirs in our layout and `shape`; the inverse of `to_theirs`.

  Raises:
    ValueError: the shapes do not fit.
  """
  expected = np.broadcast_to(np.float32(0), shape)
  expected = to_theirs(expected, layout).shape
  if value.shape != expected:
    raise ValueError(f"is {list(value.shape)}, expected {list(expected)}")
  match layout:
    case "matrix" | "qkv_kernel":
      return value.T.reshape(shape)
    case "patch":
      return value.transpose(2, 3, 1, 0)
  return value.reshape(shape)


def official_name(path: tuple[str, ...], index: int | None) -> str:
  """The official name of a parameter of ours."""
  names = ["weight" if name in ("kernel", "scale") else name for name in path]
  if "patch_embed" in names:
    names.insert(-1, "proj")
  if "blocks" in names:
    names.insert(names.index("blocks") + 1, str(index))
  elif "mlp" in names:  # a head's GELUs count as layers there
    names = [str(2 * int(name)) if name.isdigit() else name for name in names]
  return ".".join(names)


def entries(params: Params, name: Callable[[tuple[str, ...], int | None], str] = official_name
            ) -> Iterator[Entry]:
  """Every array that stands for a tree of ours (arrays or shapes), in a stable order."""
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
    path = tuple(key.key for key in key_path)
    if "blocks" in path:
      for i in range(leaf.shape[0]):
        yield Entry(name(path, i), path, i, leaf.shape[1:], layout_of(path))
    else:
      yield Entry(name(path, None), path, None, leaf.shape, layout_of(path))


def flatten(params: Params) -> dict[str, np.ndarray]:
  """A tree of ours under official names and in their layout, bit for bit."""
  leaves = {tuple(key.key for key in path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
  result = {}
  for entry in entries(params):
    leaf = leaves[entry.path]
    value = leaf if entry.index is None else leaf[entry.index]
    result[entry.name] = np.ascontiguousarray(to_theirs(value, entry.layout))
  return result


BUFFERS = re.compile(r"(^|\.)(rope_embed\.periods|attn\.qkv\.bias_mask)$")


def unflatten(arrays: Mapping[str, np.ndarray], shapes: Params) -> Params:
  """The tree of ours that official `arrays` fill.

  Args:
    arrays: by official name; buffers that follow from the architecture may be among them.
    shapes: the tree to fill, as shapes.

  Raises:
    ValueError: one line with every parameter that is missing or of another shape, and every array
      that has no place.
  """
  wanted = list(entries(shapes))
  problems = []
  unused = sorted(set(arrays) - {e.name for e in wanted})
  unused = [name for name in unused if not BUFFERS.search(name)]
  missing = [e.name for e in wanted if e.name not in arrays]
  if missing:
    problems.append(f"missing: {', '.join(missing)}")
  if unused:
    problems.append(f"of no use: {', '.join(unused)}")
  values: dict[tuple[str, ...], list[np.ndarray]] = {}
  for entry in wanted:
    if entry.name in arrays:
      try:
        value = to_ours(np.asarray(arrays[entry.name]), entry.layout, entry.shape)
        values.setdefault(entry.path, []).append(value)
      except ValueError as error:
        problems.append(f"{entry.name} {error}")
  if problems:
    raise ValueError("these weights do not fit this architecture; " + "; ".join(problems))

  def fill(path, leaf):
    path = tuple(key.key for key in path)
    value = np.stack(values[path]) if "blocks" in path else values[path][0]
    return np.asarray(value, leaf.dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)
