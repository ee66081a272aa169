"""A list of images and labels, as a text or a parquet file, over files or over another source."""

import csv
import os
import re
from collections.abc import Callable

import numpy as np

from dinov3_jax.data.decode import Decoder
from dinov3_jax.data.sources import places
from dinov3_jax.data.sources.base import Source
from dinov3_jax.data.sources.encoded import EncodedSource
from dinov3_jax.data.sources.index import NO_SPLIT, Entry, Found, build
from dinov3_jax.data.sources.layout import SPLIT_OF_NAME
from dinov3_jax.data.sources.splits import SPLITS
from dinov3_jax.data.sources.subset import Subset, places_of
from dinov3_jax.data.sources.whole_files import WholeFiles
from dinov3_jax.data.walk import printable

COLUMNS = dict(path=("path", "file", "file_name", "filename", "name", "image", "url"),
               label=("label", "class", "category", "target"), split=("split",))


def open_manifest(what: str, path: str, split: str, decoder: Decoder, cache_gb: float = 0.0,
                  over: Callable[[], Source] | None = None) -> Source:
  """The images that a list names, in its order.

  A text file has a path a line, then, after a comma or a tab, a label and a split, if there are
  any; a first line with such words in it names the columns. Parquet files have columns of these
  names. Paths are relative to the list's folder, or whole, or URLs; or, with `over`, names in that
  source. Without a column of splits, 5 % each are held out for val and test by a hash of each path.

  Args:
    what: the set as the user named it.
    path: of the list.
    split: train, val, test or all.
    decoder: of the images.
    cache_gb: see `Ranges`.
    over: opens the source that has the images.

  Raises:
    ValueError: a list that cannot be read, has no paths, or names what is not there.
  """
  paths, labels, splits = read(path)
  found = Found([Entry(name, 0, -1, label) for name, label in zip(paths, labels)])
  index = build([""], [None], [found], by_name=False, listed=True, splits=splits)
  if over is None:
    base = path.rpartition("/")[0] if places.is_remote(path) else os.path.dirname(
      places.absolute(path))
    return EncodedSource(what, index, WholeFiles(base, cache_gb), split, decoder)
  source = over()
  wanted = (index.split != NO_SPLIT) if split == "all" else index.split == SPLITS.index(split)
  chosen = np.flatnonzero(wanted)
  if not len(chosen):
    raise ValueError(f"{printable(path)} has no image for the split {split!r}")
  # An unlabelled list keeps the labels of what it is over.
  own = any(label is not None for label in labels)
  return Subset(source, places_of([paths[i] for i in chosen], source, path),
                index.label[chosen].astype(np.int64) if own else None,
                index.classes if own else None)


def read(path: str) -> tuple[list[str], list[int | str | None], list[str] | None]:
  """Paths, labels and splits (None without any) in a list.

  Raises:
    ValueError: it cannot be read, or names no image.
  """
  columns = _parquet(path) if path.endswith(".parquet") else _text(path)
  paths = columns["path"]
  if not paths:
    raise ValueError(f"{printable(path)} names no image")
  labels = columns.get("label") or [None] * len(paths)
  if all(isinstance(label, str) and re.fullmatch("[0-9]+", label) for label in labels):
    labels = [int(label) for label in labels]
  splits = columns.get("split")
  if splits:
    strange = {name for name in splits if name and name.lower() not in SPLIT_OF_NAME}
    if strange:
      raise ValueError(f"{printable(path)} has the split {printable(min(strange))}; splits are "
                       f"{', '.join(SPLITS)}")
    splits = [SPLIT_OF_NAME[name.lower()] if name else "" for name in splits]
  return paths, [label if label != "" else None for label in labels], splits


def _text(path: str) -> dict[str, list]:
  try:
    with places.open_file(path) as file:
      lines = file.read().decode("utf-8-sig", "surrogateescape").splitlines()
  except OSError as error:
    raise places.unreadable(path, error) from error
  lines = [line for line in lines if line.strip()]
  if not lines:
    return dict(path=[])
  delimiter = "\t" if "\t" in lines[0] else ","
  rows = list(csv.reader(lines, delimiter=delimiter))
  head = [name.strip().lower() for name in rows[0]]
  if set(head) & {name for names in COLUMNS.values() for name in names}:
    rows = rows[1:]
  else:
    head = list(COLUMNS)[: max(map(len, rows))]
  columns = _named(head, path)
  for number, row in enumerate(rows, 1):
    if len(row) <= columns["path"] or len(row) > len(head):
      raise ValueError(f"line {number} of {printable(path)} has {len(row)} columns, not the "
                       f"{len(head)} of the others; quote a path with a comma in it")
  return {key: [row[i].strip() if i < len(row) else "" for row in rows]
          for key, i in columns.items()}


def _parquet(path: str) -> dict[str, list]:
  from dinov3_jax.data.sources.parquet import open_file
  file = open_file(path)
  columns = _named(file.schema_arrow.names, path)
  names = {key: file.schema_arrow.names[i] for key, i in columns.items()}
  table = file.read(list(names.values()))
  return {key: table.column(name).to_pylist() for key, name in names.items()}


def _named(head: list[str], path: str) -> dict[str, int]:
  """Which column is what."""
  columns = {key: next((head.index(name) for name in names if name in head), None)
             for key, names in COLUMNS.items()}
  if columns["path"] is None:
    raise ValueError(f"{printable(path)} has no column of paths ({', '.join(COLUMNS['path'])}); it "
                     f"has {', '.join(map(printable, head))}")
  return {key: i for key, i in columns.items() if i is not None}
