"""PyTorch's files, of which only arrays and plain containers are read; no code of theirs runs."""

import argparse
import os
import pathlib
import pickle
import re
import warnings
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from dinov3_jax.weights.contents import AGAIN, reject_impostors

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")


def read(path: pathlib.Path) -> Any:
  """What a file holds: tensors (views of the mapped file), and containers and values around them.

  Raises:
    ValueError: it is no such file, is damaged, or holds what only running its code could open.
    ModuleNotFoundError: there is no PyTorch.
  """
  reject_impostors(path)
  try:
    import torch
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"only PyTorch can read {path.name}: pip install torch, or take the "
                              "safetensors files of the same weights from Hugging Face") from error
  is_zip = _is_zip(path)
  try:
    # Training scripts store their command line beside the weights; it is a plain container.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of a newer pickle protocol, which either works or fails
      content = torch.load(path, "cpu", weights_only=True, mmap=is_zip)
  except OSError as error:
    if error.errno is not None:
      raise
    raise _explained(path, error) from error
  except Exception as error:  # damaged pickles raise whatever the damage leads to
    raise _explained(path, error) from error
  return content


def _is_zip(path: pathlib.Path) -> bool:
  """Whether a file is PyTorch's zip archive; the other kind that it writes is a bare pickle."""
  with path.open("rb") as file:
    head = file.read(4)
  try:
    infos = None
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
  except Exception as error:  # as above
    raise _explained(path, error) from error
  if infos is None:
    if head == b"PK\3\4":
      raise ValueError(f"{path} is cut off: {AGAIN}")
    if head[:1] != b"\x80":
      raise ValueError(f"{path} is no file of PyTorch: {AGAIN}, or give the file itself")
    return False
  # PyTorch compresses nothing; what unpacks to more than the file is not its work.
  if any(info.file_size > path.stat().st_size for info in infos):
    raise ValueError(f"{path} is a compressed archive, which is not PyTorch's: {AGAIN}")
  names = [info.filename for info in infos]
  if any(name.endswith("/constants.pkl") for name in names):
    raise ValueError(f"{path} is a TorchScript program, not weights: save its state_dict() instead")
  if not any(name.endswith("/data.pkl") for name in names):
    raise ValueError(f"{path} is a zip archive, but not one of PyTorch's: unpack it first")
  return True


def _explained(path: pathlib.Path, error: Exception) -> ValueError:
  """An error of PyTorch in one line; its own advises to run what the file says."""
  text = str(error)
  code = re.search(r"GLOBAL (\S+)|unrecognized (?:function|class) (\S+)", text)
  if isinstance(error, pickle.UnpicklingError) and code:
    return ValueError(f"{path} holds more than arrays ({code[1] or code[2]}), which could run code "
                      "and is refused: load it where you trust it, and save the model's "
                      "state_dict() alone")
  return ValueError(f"{path} is damaged or cut off: {AGAIN}")


def as_numpy(name: str, tensor) -> np.ndarray:
  """A tensor as a view.

  Raises:
    ValueError: it is no plain array of numbers that NumPy has.
  """
  import torch
  if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
    raise ValueError(f"{name} is a sparse, quantized or empty tensor: save it as a plain one")
  size = tensor.numel() * tensor.element_size()
  if size > max(tensor.untyped_storage().nbytes(), 2**20):
    # A view that repeats its elements may claim any size.
    raise ValueError(f"{name} repeats its elements to {list(tensor.shape)}: save it as a plain one")
  tensor = tensor.detach()
  try:
    if tensor.dtype == torch.bfloat16:
      return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
  except (TypeError, RuntimeError) as error:
    raise ValueError(f"{name} is of {tensor.dtype}, which is not supported: save it as "
                     "float32") from error


def is_torch(path: str | os.PathLike) -> bool:
  """Whether a file's name is that of a PyTorch file."""
  return pathlib.Path(path).suffix in SUFFIXES
