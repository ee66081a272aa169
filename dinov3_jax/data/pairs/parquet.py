"""Parquet files with a column of images and one of captions, as the Hugging Face Hub has them."""

import os
from typing import Any

import numpy as np

from dinov3_jax.data.decode import Decoder, decode
from dinov3_jax.data.pairs.base import Pairs, pair
from dinov3_jax.data.pairs.captions import KEYS
from dinov3_jax.data.sources.opening import open_source
from dinov3_jax.data.sources.parquet import open_file
from dinov3_jax.data.walk import printable


def parquet_pairs(spec: str, split: str, decoder: Decoder = decode) -> Pairs:
  """The images of parquet files, as `open_source` finds and splits them, with their captions.

  The captions are in the first of the columns `captions.KEYS` that holds strings or lists of
  strings, whatever the case of its name. All are read when the files are opened.

  Args:
    spec: of parquet files, see `open_source`.
    split: train, val, test or all.
    decoder: that reads the images.

  Raises:
    ValueError: what `open_source` raises, no such column, or no caption at all.
  """
  images = open_source(spec, split, decoder)
  index, rows = images.index, images.rows
  found = {number: _read(index.files[number]) for number in np.unique(index.file[rows]).tolist()}
  captions = [found[int(index.file[row])][int(index.offset[row])][int(index.size[row])]
              for row in rows]
  return pair(images, captions, f"{printable(os.fspath(spec))} ({split})")


def column(schema: Any, path: str) -> str:
  """The name of the column of captions.

  Raises:
    ValueError: there is none.
  """
  from pyarrow import types
  is_text = lambda kind: types.is_string(kind) or types.is_large_string(kind)
  is_list = lambda kind: (types.is_list(kind) or types.is_large_list(kind)) and is_text(
    kind.value_type)
  for key in KEYS:
    for field in schema:
      if field.name.lower() == key and (is_text(field.type) or is_list(field.type)):
        return field.name
  raise ValueError(f"{printable(path)} has no column of captions: wanted is one of strings, or of "
                   f"lists of strings, called {', '.join(KEYS)}; it has {', '.join(schema.names)}")


def _read(path: str) -> list[list[list[Any]]]:
  """The captions of each row of each group; a row that has null has none."""
  file = open_file(path)
  name = column(file.schema_arrow, path)
  groups = []
  for group in range(file.num_row_groups):
    values = file.read_row_group(group, [name])[name].to_pylist()
    groups.append([[] if x is None else x if isinstance(x, list) else [x] for x in values])
  return groups
