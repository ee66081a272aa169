"""ArrayRecord files whose records are images, or examples with one, as `pack` writes them."""

import collections
import functools
import json
import os
import re
import threading

from dinov3_jax.data.decode import DamagedImage, Decoder
from dinov3_jax.data.sources import example, places
from dinov3_jax.data.sources.encoded import EncodedSource
from dinov3_jax.data.sources.index import Entry, Found, Index, open_index
from dinov3_jax.data.sources.splits import SPLITS
from dinov3_jax.data.walk import printable

BESIDE = ".json"  # a file of this name beside a shard has names, labels, classes and the split
KIND = "array_record.3"  # of the kept indices; the number grows where older ones lack something
PACKED = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}-of-\d{{5}}\.array_record")
OPEN = 64  # shards that a process keeps open at once


def open_array_records(what: str, files: list[str], split: str, decoder: Decoder,
                       cache_gb: float = 0.0) -> EncodedSource:
  """The images of ArrayRecord files, in the order of their records.

  A record is an encoded image, or a `tf.train.Example` with one under `image`, `image/encoded`,
  `jpg` or `png`. Names, labels and splits are those that `pack` has written beside the files; of
  others, only the numbers of records are known without reading them.

  Raises:
    ValueError: a file that is cut or unreadable, or in a bucket; one line.
  """
  del cache_gb
  remote = next(filter(places.is_remote, files), None)
  if remote:
    raise ValueError(f"{printable(remote)}: ArrayRecord files are read from disks alone; copy "
                     "them, or keep tars in the bucket")
  index = open_index(KIND, files, scan, by_name=False)
  return EncodedSource(what, index, _Reader(), split, decoder)


def _open(path: str):
  try:
    from array_record.python.array_record_module import ArrayRecordReader
  except ImportError as error:
    raise ValueError(f"{printable(path)} needs a package that is missing ({error.name}); pip "
                     "install 'dinov3_jax[array_record]'") from error
  try:  # with the options that its documentation names for random access
    reader = ArrayRecordReader(path, options="readahead_buffer_size:0,max_parallelism:0")
    if not reader.ok():
      reader.close()  # which raises what is wrong
    return reader
  except Exception as error:  # its C++ raises RuntimeError, IndexError or its own
    raise ValueError(f"{printable(path)} is no whole ArrayRecord file "
                     f"({' '.join(str(error).split())[:200]}): copy it again") from error


def scan(path: str) -> Found:
  """What is in an ArrayRecord file."""
  reader = _open(path)
  count = reader.num_records()
  reader.close()
  try:
    with open(path + BESIDE, encoding="utf-8", errors="surrogateescape") as file:
      notes = json.load(file)
    names, labels, classes = notes["names"], notes["labels"], notes["classes"]
    # The first version of `pack` told the split by the name of the file alone.
    named = PACKED.fullmatch(os.path.basename(path))
    split = notes.get("split") or (named and named[1])
    if split not in (*SPLITS, None):
      raise ValueError(f"{printable(path + BESIDE)} names the split {split!r}, and splits are "
                       f"{', '.join(SPLITS)}: pack it again")
    if not len(names) == len(labels) == count:
      raise ValueError(f"{printable(path)} has {count:,} records, but {printable(path + BESIDE)} "
                       f"names {len(names):,}: pack it again")
  except FileNotFoundError:
    names, labels = [f"{i:08}" for i in range(count)], [None] * count
    classes = split = None
  except (KeyError, TypeError, json.JSONDecodeError) as error:
    raise ValueError(f"{printable(path + BESIDE)} is damaged ({error}): pack it again") from error
  counts = collections.Counter(names)  # what was packed may have had a name more than once
  return Found([Entry(name if counts[name] == 1 else f"{i:08}-{name}", i, 0, label)
                for i, (name, label) in enumerate(zip(names, labels))], classes, split)


class _Reader:
  """Reads single records."""

  def __init__(self):
    self._lock, self._files = threading.Lock(), {}

  def __getstate__(self):
    return {}

  def __setstate__(self, state):
    self.__init__()

  def __call__(self, index: Index, row: int) -> bytes:
    number = int(index.file[row])
    with self._lock:
      reader = self._files.get(number) or self._open(index, number)
      try:
        record, = reader.read([int(index.offset[row])])
      except Exception as error:
        raise DamagedImage(index.name(row), error) from error
    return example.image(record, functools.partial(index.name, row))

  def _open(self, index: Index, number: int):
    path = index.files[number]
    if places.mark(path) != index.marks[number]:
      raise OSError(f"{printable(path)} has changed since its index was made: start anew, which "
                    "makes it again")
    if len(self._files) >= OPEN:
      self._files.pop(next(iter(self._files))).close()
    reader = self._files[number] = _open(path)
    return reader
