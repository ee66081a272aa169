"""A folder of images with captions beside them."""

import json
import os
import pathlib
from collections import Counter
from typing import Any

from dinov3_jax.data.decode import Decoder, decode
from dinov3_jax.data.pairs.base import Pairs, pair
from dinov3_jax.data.pairs.captions import NO_IMAGE, lines_of, of_object
from dinov3_jax.data.sources.folder import FolderSource
from dinov3_jax.data.walk import printable

TABLES = ("captions.jsonl", "metadata.jsonl")
FILE_KEYS = ("file_name", "image")


def folder_pairs(root: str | os.PathLike, split: str, decoder: Decoder = decode) -> Pairs:
  """The images below a folder, as `FolderSource` finds and splits them, with their captions.

  Where the folder has a `captions.jsonl` or a `metadata.jsonl`, a line of that is an object with
  the path of an image, relative to the folder, as `file_name` or `image`, and under
  one of `captions.KEYS` a string or a list of them; several lines for an image add up. Elsewhere
  every line of `cat.txt` is a caption of `cat.jpg` in the same folder.

  Raises:
    ValueError: what `FolderSource` raises, a line of a table that is none, or no caption at all.
    OSError: a table cannot be read.
  """
  images, faults = FolderSource(root, split, decoder), Counter()
  paths = images.paths()
  table = next((path for name in TABLES if (path := images.root / name).is_file()), None)
  if table is None:
    captions = [_beside(images.root / path) for path in paths]
  else:
    told = _read_table(table)
    captions = [told.pop(path, []) for path in paths]
    if split == "all":  # else they may belong to another one
      faults[NO_IMAGE] = sum(map(len, told.values()))
  return pair(images, captions, f"{printable(images.root)} ({split})", faults)


def _beside(image: pathlib.Path) -> list[Any]:
  """The lines of the text beside an image."""
  try:
    return lines_of(image.with_suffix(".txt").read_bytes())
  except FileNotFoundError:
    return []


def _read_table(path: pathlib.Path) -> dict[str, list[Any]]:
  """Captions by the path of their image."""
  captions = {}
  with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
        name = next(row[key] for key in FILE_KEYS if key in row)
        told = of_object(row)
      except (ValueError, TypeError, StopIteration, KeyError):
        raise ValueError(
          f"{printable(path)}, line {number}, is no caption: wanted is an object such as "
          '{"file_name": "cat.jpg", "caption": "a cat"}') from None
      captions.setdefault(os.path.normpath(str(name)), []).extend(told)
  return captions
