"""Files of arrays, opened without being read: only what is looked at comes into memory."""

import os
import pathlib
from typing import Any

import numpy as np

from dinov3_jax.weights import safetensors_file, torch_file
from dinov3_jax.weights.contents import read_json
from dinov3_jax.weights.places import expand
from dinov3_jax.weights.unwrapping import unwrap

SUFFIXES = (safetensors_file.SUFFIX, *torch_file.SUFFIXES)
INDEX = "model.safetensors.index.json"
# What a folder of Hugging Face's format calls its model, the best first.
NAMES = (INDEX, "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")


def open_arrays(path: str | os.PathLike, network: str = "teacher") -> dict[str, np.ndarray]:
  """The arrays of a backbone, file by file, as views of the mapped files.

  Args:
    path: a `.safetensors` file, an `.index.json` of several files, a `.pth`, `.pt`, `.bin` or
      `.ckpt` file (PyTorch reads it), or a folder with one of these.
    network: "teacher" or "student", where the file has both.

  Returns:
    The arrays by name, without what is wrapped around them; see `unwrap`. A file is let go with the
    last of its arrays.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a file is damaged or of another kind.
    ModuleNotFoundError: a PyTorch file, and no PyTorch.
  """
  path, content = find(path), open_content(path)
  try:
    return {name: x if isinstance(x, np.ndarray) else torch_file.as_numpy(name, x)
            for name, x in unwrap(content, network).items()}
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def open_content(path: str | os.PathLike) -> dict[Any, Any]:
  """What a file holds, or several together, with all that is wrapped around the arrays; arguments
  and errors as `open_arrays`."""
  path = find(path)
  return _open_shards(path) if path.name.endswith(".index.json") else _open_one(path)


def find(path: str | os.PathLike) -> pathlib.Path:
  """The file that holds the model: `path` itself, or what the folder `path` has.

  Raises:
    FileNotFoundError: there is none, or more than one.
  """
  path = pathlib.Path(expand(path))
  if path.is_file():
    return path
  if not path.is_dir():
    raise FileNotFoundError(f"there is no file or folder {path}")
  for name in NAMES:
    if (path / name).is_file():
      return path / name
  found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
  if len(found) != 1:
    names = ", ".join(file.name for file in found[:5])
    raise FileNotFoundError(f"{path} holds no model.safetensors, and {len(found) or 'no'} other "
                            f"files of weights{names and f' ({names})'}: give the file itself")
  return found[0]


def _open_one(path: pathlib.Path) -> dict[Any, Any]:
  if path.suffix == safetensors_file.SUFFIX:
    return safetensors_file.read(path)
  if not torch_file.is_torch(path):
    raise ValueError(f"{path} is no file of weights: its name must end in {', '.join(SUFFIXES)}")
  content = torch_file.read(path)
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds a {type(content).__name__}, not the named arrays of a model: "
                     "save its state_dict()")
  return content


def _open_shards(index: pathlib.Path) -> dict[str, Any]:
  places = read_json(index).get("weight_map")
  if not isinstance(places, dict) or not all(isinstance(x, str) for x in places.values()):
    raise ValueError(f"{index} has no weight_map from arrays to files: download it again")
  arrays = {}
  for name in sorted(set(places.values())):
    _require_inside(index, name)
    if not (index.parent / name).is_file():
      raise FileNotFoundError(f"{index} names {name}, which is not there: load the rest, too")
    arrays |= _open_one(index.parent / name)
  missing = sorted(places.keys() - arrays.keys())
  if missing:
    raise ValueError(f"{index} names arrays that its files lack: {', '.join(missing)}")
  return arrays


def _require_inside(index: pathlib.Path, name: str):
  """Refuses a file that is not in the index's folder or below; links there are the user's own."""
  posix, windows = pathlib.PurePosixPath(name), pathlib.PureWindowsPath(name)
  if posix.root or windows.anchor or ".." in (*posix.parts, *windows.parts) or "\0" in name:
    raise ValueError(f"{index} names {name!r}, which is not in its folder, and is refused")
  if posix.suffix not in SUFFIXES:
    raise ValueError(f"{index} names {name!r}, which is no file of weights")
