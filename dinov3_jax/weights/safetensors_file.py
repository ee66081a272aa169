"""Safetensors files, opened without being read: only what is looked at comes into memory."""

import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from dinov3_jax.weights.contents import AGAIN, reject_impostors

SUFFIX = ".safetensors"
LONGEST = 10**8  # bytes of a header
DTYPES = dict(F64="f8", F32="f4", F16="f2", BF16=ml_dtypes.bfloat16, I64="i8", I32="i4", I16="i2",
              I8="i1", U64="u8", U32="u4", U16="u2", U8="u1", BOOL="?")


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a file, in its order, as views of the mapped file.

  Raises:
    ValueError: it is no such file, is damaged, or has arrays of a dtype that NumPy lacks.
  """
  reject_impostors(path)
  with path.open("rb") as file:
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    left = path.stat().st_size - 8 - length
    # A length beyond what the format allows is no length, but something else's beginning.
    if left < 0 and length <= LONGEST and start[8:] in (b"{", b""):
      raise ValueError(f"{path} is cut off: {AGAIN}")
    file.seek(8)
    text = file.read(length) if left >= 0 else b""
  try:
    # The library checks the header: its depth, the dtypes, and that the arrays fill the file.
    with safe_open(path, "np"):
      pass
  except SafetensorError as error:
    kind = "cut off" if _end(text) > left >= 0 else "no safetensors file, or is damaged"
    raise ValueError(f"{path} is {kind}: {AGAIN}") from error
  header = json.loads(text)
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


def _end(header: bytes) -> int:
  """Where the last array of a header ends; 0 for what is no header."""
  try:
    entries = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
    return max((int(entry["data_offsets"][1]) for entry in entries), default=0)
  except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError):
    return 0
