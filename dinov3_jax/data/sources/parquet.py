"""Parquet files with a column of encoded images, as the Hugging Face Hub has them."""

import collections
import json
import threading
from typing import Any

from dinov3_jax.data.decode import DamagedImage, Decoder
from dinov3_jax.data.sources import places
from dinov3_jax.data.sources.encoded import EncodedSource
from dinov3_jax.data.sources.index import Entry, Found, Index, open_index
from dinov3_jax.data.walk import printable

IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABELS = ("label", "labels", "cls", "class", "fine_label", "category")
GROUPS = 16  # row groups whose images are mixed, and that a process holds at once
OPEN = 64  # files that a process keeps open at once


def open_parquet(what: str, files: list[str], split: str, decoder: Decoder, cache_gb: float = 0.0
                 ) -> EncodedSource:
  """The images of parquet files, in the order of their rows.

  A column of structs with `bytes` (and `path`), or of bytes, has the images; one of integers or
  names, the labels, with the names of the Hub's `ClassLabel`. A row group can be read only as a
  whole, so training shuffles groups, and images within some of them (see `shuffle.BlockShuffle`).

  Raises:
    ValueError: a file that is cut or unreadable, or has no such column; one line.
  """
  del cache_gb  # whole groups are read, and none a second time in a pass
  index = open_index("parquet", files, scan, by_name=False)
  return EncodedSource(what, index, _Reader(), split, decoder, in_blocks=True)


def open_file(path: str):
  """A parquet file of this machine or of a bucket.

  Raises:
    ValueError: pyarrow is missing, or the file is not whole.
  """
  try:
    from pyarrow import ArrowException, parquet
  except ImportError as error:
    raise ValueError(f"{printable(path)} needs a package that is missing ({error.name}); pip "
                     "install 'dinov3_jax[parquet]'") from error
  try:
    return parquet.ParquetFile(places.open_file(path))
  except (ArrowException, OSError) as error:
    raise ValueError(f"{printable(path)} is no whole parquet file "
                     f"({' '.join(str(error).split())[:200]}): copy it again") from error


def columns(schema: Any, path: str) -> tuple[str, bool, str | None]:
  """The column of images, whether it holds structs, and that of labels.

  Raises:
    ValueError: there is none of images.
  """
  from pyarrow import types
  is_bytes = lambda kind: types.is_binary(kind) or types.is_large_binary(kind)
  structs = [field.name for field in schema if types.is_struct(field.type) and
             any(part.name == "bytes" and is_bytes(part.type) for part in field.type)]
  plain = [name for name in IMAGES if name in schema.names and is_bytes(schema.field(name).type)]
  if not structs and not plain:
    raise ValueError(
      f"{printable(path)} has no column of images: wanted is one of structs with `bytes`, or of "
      f"bytes called {', '.join(IMAGES)}; it has {', '.join(schema.names)}")
  label = next((name for name in LABELS if name in schema.names and (
    types.is_integer(schema.field(name).type) or types.is_string(schema.field(name).type))), None)
  named = [name for name in structs if name in IMAGES]
  return ([*named, *structs] or plain)[0], bool(structs), label


def scan(path: str) -> Found:
  """What is in a parquet file; of the images, only their paths are read."""
  file = open_file(path)
  schema = file.schema_arrow
  image, is_struct, label = columns(schema, path)
  has_path = is_struct and "path" in {part.name for part in schema.field(image).type}
  wanted = [f"{image}.path"] * has_path + [label] * (label is not None)
  entries, row = [], 0
  for group in range(file.num_row_groups):
    count = file.metadata.row_group(group).num_rows
    table = file.read_row_group(group, wanted).to_pydict() if wanted else {}
    names = [part["path"] for part in table[image]] if has_path else [None] * count
    labels = table.get(label) or [None] * count
    for i, (name, value) in enumerate(zip(names, labels)):
      entries.append(Entry(name or f"{row + i:08}", group, i, value))
    row += count
  if len({entry.name for entry in entries}) < len(entries):
    for i, entry in enumerate(entries):
      entry.name = f"{i:08}-{entry.name}"
  return Found(entries, _class_names(schema, label))


def _class_names(schema: Any, label: str | None) -> list[str] | None:
  """The names of a `ClassLabel` in what the Hub's library writes beside a schema."""
  try:
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    return [printable(name) for name in features[label]["names"]] or None
  except (TypeError, KeyError, ValueError):
    return None


class _Reader:
  """Reads whole row groups, and keeps the last ones, and the last files open."""

  def __init__(self):
    self._files, self._groups = collections.OrderedDict(), collections.OrderedDict()
    self._lock = threading.Lock()

  def __getstate__(self):
    return {}

  def __setstate__(self, state):
    self.__init__()

  def __call__(self, index: Index, row: int) -> bytes:
    key = int(index.file[row]), int(index.offset[row])
    with self._lock:
      images = self._groups.get(key)
      if images is None:
        images = self._groups[key] = self._read(index, *key)
        if len(self._groups) > GROUPS:
          self._groups.popitem(last=False)
      else:
        self._groups.move_to_end(key)
    data = images[int(index.size[row])].as_py()
    if not data:
      raise DamagedImage(index.name(row), "its row has no bytes")
    return data

  def _read(self, index: Index, number: int, group: int):
    path = index.files[number]
    file, image, is_struct = self._files.get(number) or self._open(index, number)
    self._files.move_to_end(number)
    column = f"{image}.bytes" if is_struct else image
    try:
      table = file.read_row_group(group, [column]).column(image).combine_chunks()
    except Exception as error:  # of pyarrow and of any file system
      raise OSError(f"{printable(path)} cannot be read: {' '.join(str(error).split())}") from error
    return table.field("bytes") if is_struct else table

  def _open(self, index: Index, number: int):
    path = index.files[number]
    if places.mark(path) != index.marks[number]:
      raise OSError(f"{printable(path)} has changed since its index was made: start anew, which "
                    "makes it again")
    while len(self._files) >= OPEN:  # groups that were read are copies, and reads hold the lock
      self._files.popitem(last=False)[1][0].close(force=True)
    file = open_file(path)
    self._files[number] = found = (file, *columns(file.schema_arrow, path)[:2])
    return found
