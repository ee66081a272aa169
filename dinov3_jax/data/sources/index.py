"""Where each image of a set of files lies: found out once, kept on disk, and mapped into memory."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dinov3_jax.data.sources import places
from dinov3_jax.data.sources.layout import SPLIT_OF_NAME, Layout, read_layout
from dinov3_jax.data.sources.ranges import cache_folder
from dinov3_jax.data.sources.splits import HELD_OUT, SPLITS, hash_percent
from dinov3_jax.data.walk import printable

log = logging.getLogger(__name__)

VERSION = 1  # of the files on disk
COLUMNS = dict(file=np.int32, offset=np.int64, size=np.int64, label=np.int32, split=np.int8,
               packed=np.int8, ends=np.int64, text=np.uint8)
NO_SPLIT = len(SPLITS)  # an image beside the folders or files of the splits
THREADS = 8  # that look at files
LARGE = 2**28  # bytes of files that take long enough to look through that it is said


@dataclasses.dataclass
class Entry:
  """An image as a file's own table tells of it.

  Attributes:
    name: unique in the file.
    offset, size: of its bytes; for files with records of their own, the record.
    label: a number, a name (of a class), or None.
    packed: a number that the reader knows the meaning of.
  """

  name: str
  offset: int
  size: int
  label: int | str | None = None
  packed: int = 0


@dataclasses.dataclass
class Found:
  """What is in a file.

  Attributes:
    entries: its images.
    classes: the names of classes by number, where it has them.
    split: train, val or test, where the file itself says of which it is.
  """

  entries: list[Entry]
  classes: list[str] | None = None
  split: str | None = None


class Index:
  """The images of a set of files, in a fixed order, as arrays of one entry an image.

  Attributes:
    files, marks: paths, and `places.mark` of each.
    file, offset, size, label, packed: see `Entry`; `file` is a number, a `label` of -1 is none.
    split: 0, 1, 2 for train, val and test; `NO_SPLIT` for images beside those.
    classes: names, or None.
    note: how splits were found out, for the log.
  """

  def __init__(self, arrays: dict[str, np.ndarray], notes: dict,
               folder: pathlib.Path | None = None):
    self.__dict__.update(arrays)
    self._arrays, self._notes, self._folder = arrays, notes, folder
    self.files, self.marks = notes["files"], notes["marks"]
    self.classes, self.note = notes["classes"], notes["note"]

  def __reduce__(self):
    if self._folder is not None:  # another process maps the same memory
      return load, (self._folder,)
    return Index, (self._arrays, self._notes)

  def __len__(self) -> int:
    return len(self.file)

  def name(self, row: int) -> str:
    """The name of an image, as bytes of a file system are written in Python."""
    start = self.ends[row - 1] if row else 0
    return os.fsdecode(self.text[start : self.ends[row]].tobytes())

  @property
  def nbytes(self) -> int:
    """Of the arrays, which all processes share where they come from the disk."""
    return sum(array.nbytes for array in self._arrays.values())


def open_index(kind: str, files: Sequence[str], scan: Callable[[str], Found], by_name: bool = True,
               cache: bool = True) -> Index:
  """The index of a set of files: that of an earlier call if no file has changed, or a new one.

  Args:
    kind: of the files, in a word.
    files: their paths.
    scan: tells what is in one of them; raises ValueError for one that cannot be read.
    by_name: the images are put in the order of their names. Otherwise in that of the files, and of
      the images in each.
    cache: whether it is kept.

  Raises:
    ValueError: from `scan`, or without any image.
  """
  files = [places.absolute(path) for path in files]
  with ThreadPoolExecutor(THREADS) as threads:
    marks = list(threads.map(places.mark, files))
  key = hashlib.sha256(repr((VERSION, kind, files)).encode("utf-8", "surrogateescape"))
  folder = cache_folder() / "index" / key.hexdigest()[:24]
  if cache:
    try:
      index = load(folder)
      if index.marks == marks:
        return index
      log.info("%s: the index is older than its files, and is made again", printable(files[0]))
    except (OSError, ValueError, KeyError):  # there is none, or it is not whole
      pass
  if sum(size for size, _ in marks) > LARGE:
    log.info("%s%s: looking for the images, which is kept for later", printable(files[0]),
             f" and {len(files) - 1:,} more" if len(files) > 1 else "")
  with ThreadPoolExecutor(THREADS) as threads:
    found = list(threads.map(scan, files))
  index = build(files, marks, found, by_name)
  if not len(index):
    raise ValueError(f"no image in {printable(files[0])}" + (
      f" and {len(files) - 1:,} more files" if len(files) > 1 else ""))
  if cache:
    try:
      save(index, folder)
      return load(folder)
    except OSError as error:
      log.warning("the index cannot be kept in %s (%s), and is made again every time; set "
                  "DINOV3_JAX_CACHE to a folder that can be written to", folder,
                  error.strerror or error)
  return index


def build(files: Sequence[str], marks: Sequence[list], found: Sequence[Found],
          by_name: bool = True, listed: bool = False, splits: Sequence[str] | None = None
          ) -> Index:
  """An index of what was found in each file.

  Names that two files share get the file's name before them. Splits are those that the files
  themselves tell (see `Found`), and then nothing is held out; or those of the files' names
  (`train-0001.tar`) where one of them says train, or else of the folders in the images' names (see
  `layout.read_layout`); a label is the images' own, or else the folder at the top. Without a split
  for val, 5 % of train is held out by a hash of each name.

  Args:
    files, marks, found: as many of each.
    by_name: see `open_index`.
    listed: the names are paths in a list, whose folders mean nothing.
    splits: of each image in the list; "" for none.
  """
  entries = list(itertools.chain.from_iterable(one.entries for one in found))
  numbers = np.repeat(np.arange(len(files)), [len(one.entries) for one in found])
  names = own = [entry.name for entry in entries]
  if len(files) > 1 and len(set(names)) < len(names):
    stems = [os.path.basename(path) for path in files]
    stems = stems if len(set(stems)) == len(stems) else list(files)
    names = [f"{stems[number]}/{name}" for number, name in zip(numbers, own)]
  split, depth, note = _splits(files, [one.split for one in found], numbers, own, listed, splits)
  labels, classes = _labels(entries, found, own, None if listed else depth)
  order = np.array(sorted(range(len(names)), key=names.__getitem__) if by_name else
                   range(len(names)), np.int64)
  encoded = [os.fsencode(names[i]) for i in order]
  pick = lambda key: np.array([getattr(entry, key) for entry in entries], COLUMNS[key])[order]
  arrays = dict(file=numbers.astype(np.int32)[order], label=labels[order], split=split[order],
                **{key: pick(key) for key in ("offset", "size", "packed")},
                ends=np.cumsum([len(name) for name in encoded], dtype=np.int64),
                text=np.frombuffer(b"".join(encoded), np.uint8))
  return Index(arrays, dict(files=list(files), marks=list(marks), classes=classes, note=note))


def split_of_file(path: str) -> str | None:
  """The split that is one of the first two words of a file's name, or of its folder's."""
  for part in path.split("/")[-1:-3:-1]:
    word = part.lower().replace("_", "-").replace(".", "-").split("-")
    for name in word[: 2 if len(word) > 1 else 1]:
      if name in SPLIT_OF_NAME:
        return SPLIT_OF_NAME[name]
  return None


def _splits(files: Sequence[str], told: Sequence[str | None], numbers: np.ndarray, names: list[str],
            listed: bool, given: Sequence[str] | None) -> tuple[np.ndarray, int, str]:
  """The split of each image, the folders above those of the classes, and a note."""
  of_file = [split_of_file(path) for path in files]
  if given is not None:
    found, depth, note = [name or None for name in given], 0, "splits are those of the list"
    has_val = "val" in found
  elif any(told):  # what was held out was so before these files were written
    of_file = [own or name for own, name in zip(told, of_file)]
    found, depth = [of_file[number] for number in numbers], 0
    note, has_val = "the files say which split they are", True
  elif "train" in of_file:
    found, depth = [of_file[number] for number in numbers], 0
    note, has_val = "the names of the files are splits", "val" in of_file
  else:
    layout = Layout({}) if listed else read_layout(names)
    found, depth, has_val = [layout.split(name) for name in names], layout.depth, True
    note = (f"the folders {', '.join(map(printable, layout.splits))} are splits" if layout.splits
            else "the list has no splits" if listed else "no folders are splits")
  if not has_val:
    found = ["val" if split == "train" and hash_percent(name) < HELD_OUT else split
             for split, name in zip(found, names)]
  number = {name: i for i, name in enumerate(SPLITS)}
  return np.array([number.get(split, NO_SPLIT) for split in found], np.int8), depth, note


def _labels(entries: list[Entry], found: Sequence[Found], names: list[str],
            depth: int | None) -> tuple[np.ndarray, list[str] | None]:
  """A number for each image, -1 for none, and the classes, where there are any; by the folders at a
  depth, if the images have none of their own."""
  own = [entry.label for entry in entries]
  classes = next((one.classes for one in found if one.classes), None)
  if depth is not None and all(label is None for label in own):
    parts = [name.split("/") for name in names]
    own = [part[depth] if len(part) > depth + 1 else None for part in parts]
    classes = None
  given = {label for label in own if label is not None}
  if not given:
    return np.full(len(own), -1, np.int32), None
  if all(isinstance(label, int) for label in given):
    count = max(max(given) + 1, len(classes or ()))
    classes = [*(classes or ()), *map(str, range(len(classes or ()), count))]
    return np.array([-1 if label is None or label < 0 else label for label in own],
                    np.int32), classes
  classes = sorted(map(str, given), key=lambda name: (not name.isdecimal(), int(name) if
                                                      name.isdecimal() else 0, name))
  number = {name: i for i, name in enumerate(classes)}
  return (np.array([-1 if label is None else number[str(label)] for label in own], np.int32),
          [printable(name) for name in classes])


def save(index: Index, folder: pathlib.Path) -> None:
  """Writes an index, which has its name only when it is whole.

  Raises:
    OSError: it cannot be written.
  """
  new = folder.with_name(f"{folder.name}.{os.getpid()}.new")
  new.mkdir(parents=True, exist_ok=True)
  for key in COLUMNS:
    np.save(new / f"{key}.npy", getattr(index, key))
  (new / "notes.json").write_text(json.dumps(index._notes))
  old = folder.with_name(f"{folder.name}.{os.getpid()}.old")
  try:
    with contextlib.suppress(FileNotFoundError):
      folder.rename(old)
    new.rename(folder)
  except OSError:  # another process was faster
    shutil.rmtree(new)
  shutil.rmtree(old, ignore_errors=True)


def load(folder: pathlib.Path) -> Index:
  """Maps an index that `save` wrote.

  Raises:
    OSError, ValueError, KeyError: it is not there, or not whole.
  """
  notes = json.loads((folder / "notes.json").read_text())
  arrays = {key: np.load(folder / f"{key}.npy", mmap_mode="r") for key in COLUMNS}
  if len({len(arrays[key]) for key in COLUMNS if key != "text"}) != 1 or (
      len(arrays["ends"]) and arrays["ends"][-1] != len(arrays["text"])):
    raise ValueError(f"{folder} is not whole")
  return Index(arrays, notes, folder)
