"""Files of arrays, opened without being read: only what is looked at comes into memory."""

import json
import os
import pathlib
import zipfile

import ml_dtypes
import numpy as np

DTYPES = dict(F64="f8", F32="f4", F16="f2", BF16=ml_dtypes.bfloat16, I64="i8", I32="i4", I16="i2",
              I8="i1", U8="u1", BOOL="?")
INDEX = "model.safetensors.index.json"


def open_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The arrays of a file or of a folder, file by file, as views of their mapped files.

  Args:
    path: a `.safetensors` file, its `.index.json`, a `.pth` or `.pt` file (PyTorch reads it), or a
      folder with one of these.

  Returns:
    The arrays by name. A file is let go with the last of its arrays.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a file is damaged or of another kind.
    ModuleNotFoundError: a PyTorch file, and no PyTorch.
  """
  path = find(path)
  if path.name.endswith(".index.json"):
    return _open_shards(path)
  if path.suffix == ".safetensors":
    return _open_safetensors(path)
  if path.suffix in (".pth", ".pt"):
    return _open_torch(path)
  raise ValueError(f"{path} is neither a .safetensors nor a .pth file")


def find(path: str | os.PathLike) -> pathlib.Path:
  """The file that holds the model: `path` itself, or what the folder `path` has.

  Raises:
    FileNotFoundError: there is none, or more than one.
  """
  path = pathlib.Path(path)
  if path.is_file():
    return path
  if not path.is_dir():
    raise FileNotFoundError(f"there is no file or folder {path}")
  for name in (INDEX, "model.safetensors"):
    if (path / name).is_file():
      return path / name
  found = sorted(f for f in path.iterdir() if f.suffix in (".pth", ".pt"))
  if len(found) != 1:
    raise FileNotFoundError(f"{path} holds no model.safetensors, and {len(found) or 'no'} .pth file"
                            "s: give the file itself")
  return found[0]


def _open_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    with path.open("rb") as file:
      size = int.from_bytes(file.read(8), "little")
      header = json.loads(file.read(size)) if size < path.stat().st_size else None
    header.pop("__metadata__", None)
    data = np.asarray(np.memmap(path, np.uint8, "r", offset=8 + size))
    return {name: data[slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]])
            .reshape(entry["shape"])
            for name, entry in sorted(header.items(), key=lambda x: x[1]["data_offsets"])}
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path} is no safetensors file, or is damaged: load it anew") from error


def _open_shards(index: pathlib.Path) -> dict[str, np.ndarray]:
  places = json.loads(index.read_text())["weight_map"]
  arrays = {}
  for name in sorted(set(places.values())):
    if not (index.parent / name).is_file():
      raise FileNotFoundError(f"{index} names {name}, which is not there: load the rest, too")
    arrays |= _open_safetensors(index.parent / name)
  missing = sorted(places.keys() - arrays.keys())
  if missing:
    raise ValueError(f"{index} names arrays that its files lack: {', '.join(missing)}")
  return arrays


def _open_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    import torch
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"only PyTorch can read {path.name}: pip install torch, or take the "
                              "safetensors files of the same weights from Hugging Face") from error
  tensors = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
  tensors = tensors.get("teacher", tensors)  # the reference's trainer keeps its EMA alone
  wrong = [name for name, x in tensors.items() if not isinstance(x, torch.Tensor)]
  if wrong:
    raise ValueError(f"{path} holds more than the parameters of one model: {', '.join(wrong)}")
  return {name: _as_numpy(tensor) for name, tensor in tensors.items()}


def _as_numpy(tensor) -> np.ndarray:
  import torch
  if tensor.dtype == torch.bfloat16:
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.detach().numpy()
