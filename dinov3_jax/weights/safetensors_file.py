"""Safetensors files, opened without being read: only what is looked at comes into memory."""

import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from dinov3_jax.weights.contents import AGAIN, reject_impostors

SUFFIX = ".safetensors"
DTYPES = dict(F64="f8", F32="f4", F16="f2", BF16=ml_dtypes.bfloat16, I64="i8", I32="i4", I16="i2",
              I8="i1", U64="u8", U32="u4", U16="u2", U8="u1", BOOL="?")


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a file, in its order, as views of the mapped file.

  Raises:
    ValueError: it is no such file, is damaged, or has arrays of a dtype that NumPy lacks.
  """
  reject_impostors(path)
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
  left = path.stat().st_size - 8 - length
  if left < 0:
    with path.open("rb") as file:
      start = file.read(9)[8:]
    # The length of a file that is cut is still followed by the header's first bytes.
    raise ValueError(f"{path} is cut off: {AGAIN}" if start in (b"{", b"") and length < 10**8 else
                     f"{path} is no safetensors file, or is damaged: {AGAIN}")
  try:
    # The library checks the header: its depth, the dtypes, and that the arrays fill the file.
    with safe_open(path, "np"):
      pass
  except SafetensorError as error:
    cut = "InvalidHeaderLength" not in str(error) and "IncompleteBuffer" in str(error)
    raise ValueError(f"{path} is cut off, or its header is damaged: {AGAIN}" if cut else
                     f"{path} is no safetensors file, or is damaged: {AGAIN}") from error
  with path.open("rb") as file:
    file.seek(8)
    header = json.loads(file.read(length))
  header.pop("__metadata__", None)
  for name, entry in header.items():
    if entry["dtype"] not in DTYPES:
      raise ValueError(f"{path}: {name} is of dtype {entry['dtype']}, which is not supported: "
                       "convert the file to float32, float16 or bfloat16")
  # Nothing cannot be mapped.
  data = np.memmap(path, np.uint8, "r", offset=8 + length) if left else np.zeros(0, np.uint8)
  data = np.asarray(data)
  try:
    return {name: data[slice(*entry["data_offsets"])].view(DTYPES[entry["dtype"]])
            .reshape(entry["shape"])
            for name, entry in sorted(header.items(), key=lambda x: x[1]["data_offsets"])}
  except (OverflowError, ValueError) as error:  # a side of an empty array can be any number
    raise ValueError(f"{path} is damaged: {AGAIN}") from error
