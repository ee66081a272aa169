"""Tars of images and captions, as WebDataset and img2dataset write them."""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dinov3_jax.data.decode import Decoder, decode
from dinov3_jax.data.pairs.base import Pairs, pair
from dinov3_jax.data.pairs.captions import NO_IMAGE, lines_of, of_object
from dinov3_jax.data.sources.opening import open_source
from dinov3_jax.data.sources.tar import key_of, members
from dinov3_jax.data.walk import SUFFIXES, printable

THREADS = 16  # tars at once


def tar_pairs(spec: str, split: str, decoder: Decoder = decode) -> Pairs:
  """The images in tars, as `open_source` finds and splits them, with their captions.

  The captions of `0007.jpg` are the lines of `0007.txt` in the same tar, or else what `0007.json`
  has under one of `captions.KEYS`, or a list there. All are read when the tars are opened.

  Args:
    spec: of tars, see `open_source`.
    split: train, val, test or all.
    decoder: that reads the images.

  Raises:
    ValueError: what `open_source` raises, or no caption at all.
  """
  images, faults = open_source(spec, split, decoder), Counter()
  index, rows = images.index, images.rows
  numbers = np.unique(index.file[rows])
  with ThreadPoolExecutor(min(THREADS, len(numbers))) as threads:
    scanned = list(threads.map(lambda i: scan(index.files[i]), numbers))
  faults[NO_IMAGE] = sum(alone for _, alone in scanned)
  found = {number: captions for number, (captions, _) in zip(numbers.tolist(), scanned)}
  captions = [found[int(index.file[row])].get(int(index.offset[row]), []) for row in rows]
  return pair(images, captions, f"{printable(os.fspath(spec))} ({split})", faults)


def scan(path: str) -> tuple[dict[int, list[Any]], int]:
  """What is said of each image in a tar, by where the image begins; and captions without one.

  What is no text stands among the captions, for `captions.usable` to count.

  Raises:
    ValueError: a tar that is compressed, cut or unreadable.
  """
  images, lines, objects = {}, {}, {}
  with members(path) as found:
    for name, member, read in found:
      if name.lower().endswith(SUFFIXES):
        images.setdefault(key_of(name), []).append(member.offset_data)
      elif name.endswith(".txt"):
        lines[key_of(name)] = lines_of(read())
      elif name.endswith(".json"):
        objects[key_of(name)] = _of_json(read())
  told = {key: texts for key, texts in objects.items() if texts} | lines
  alone = sum(len(texts) for key, texts in told.items() if key not in images)
  return {place: told[key] for key, at in images.items() if key in told for place in at}, alone


def _of_json(data: bytes) -> list[Any]:
  try:
    return of_object(json.loads(data))
  except ValueError:
    return [data]
  except (KeyError, TypeError):  # it says something else of the image
    return []
