"""Pickles that data sets are downloaded as, read without running what is in them."""

import io
import os
import pathlib
import pickle

# What a pickle of arrays refers to, by old and new versions of NumPy.
ALLOWED = frozenset([
  ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
  *((f"numpy.{core}.multiarray", name) for core in ("core", "_core")
    for name in ("_reconstruct", "scalar")),
  *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core"))])


class _Plain(pickle.Unpickler):
  """Reads lists, dicts, numbers and NumPy arrays, and nothing that runs code."""

  def find_class(self, module, name):
    if (module, name) not in ALLOWED:
      raise pickle.UnpicklingError(f"it wants to run {module}.{name}")
    return super().find_class(module, name)


def load(path: str | os.PathLike) -> object:
  """What a pickle holds; text of Python 2 becomes text.

  Raises:
    ValueError: it is no pickle of plain values and arrays.
  """
  try:
    return _Plain(io.BytesIO(pathlib.Path(path).read_bytes()), encoding="latin1").load()
  except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, IndexError) as error:
    raise ValueError(f"{path} is no plain pickle: {error}") from error
