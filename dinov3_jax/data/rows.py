"""Arrays that grow on disk row by row, safe from kills, and end as one file."""

import contextlib
import errno
import json
import logging
import math
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from safetensors import safe_open

from dinov3_jax.data.durable import sync

log = logging.getLogger(__name__)

COMMIT_SECONDS = 10  # of work that a kill may cost
HEADER_BYTES = 10**8  # above which safetensors reads no header
STATE, ITEMS = "state.json", "items"
WHOLE, NAMES, NEW = "whole", "names", "state.new"
KINDS = dict(job=dict, done=int, rows=int, damaged=dict, shapes=dict, placed=dict)  # of the state
CHUNK = 2**26  # bytes that are brought into order at once


class Rows:
  """Arrays that grow row by row in a folder, and become one file.

  Every row belongs to an item; an item that gets a second row is known by that one. What `commit`
  has seen survives a kill or a power cut: `state.json` says how much of each raw file counts, and
  is written after these are on the disk. Whatever else is in the files is cut off.

  One process at a time may use the folder; the caller sees to that (`dinov3_jax.data.lock`).

  Args:
    folder: may hold the beginning of the same job.
    out: the file that it becomes, .safetensors or .npy.
    job: what decides the rows, as JSON; its `dtype` is that of all arrays.

  Attributes:
    done: items that are through, the damaged ones included; the next one has this number.
    damaged: why, by number, of items that have no row.
    finished: whether `out` is complete, and `finish` was killed afterwards: nothing is left to do.

  Raises:
    ValueError: the folder holds the beginning of another job.
    OSError: it cannot be written to.
  """

  def __init__(self, folder: pathlib.Path, out: pathlib.Path, job: dict[str, Any]):
    self._folder, self._out, self._job, self._files = folder, out, job, {}
    self._count, self.damaged = (0, 0), {}  # of items and rows: they change together
    self._shapes, self._placed, self._made, self.finished = {}, {}, True, False
    folder.mkdir(exist_ok=True)
    if not self._resume():  # else what there was is of no use
      self.commit()  # from here on a beginning says whose it is
    self._committed = time.monotonic()

  @property
  def done(self) -> int:
    return self._count[0]

  def __enter__(self):
    return self

  def __exit__(self, kind, *_):
    try:
      if not self.finished:
        # An error must not be hidden by another one of the same disk.
        with contextlib.suppress(*[OSError] if kind else []):
          self.commit()
    finally:
      for file in self._files.values():
        with contextlib.suppress(OSError):  # what is not committed need not be written
          file.close()

  def _resume(self) -> bool:
    """Takes up what the folder holds, if it is of use."""
    state = _stored(self._folder)
    if state is None:
      return False
    job = state["job"]
    other = [key for key in self._job | job if self._job.get(key) != job.get(key)]
    if other:
      raise ValueError(f"{self._folder} has the beginning of another job (its {', '.join(other)} "
                       "differ): delete it, or choose another --out")
    self._placed = state["placed"]
    self.damaged = {int(item): reason for item, reason in state["damaged"].items()}
    rows, shapes = state["rows"], state["shapes"]
    if is_ours(self._out, self._folder):
      self._shapes = shapes
      self._clear()
      return True
    sizes = {key: rows * self._bytes(shape) for key, shape in shapes.items()}
    if rows:
      sizes[ITEMS] = rows * 24
    for key, size in sizes.items():
      path = self._folder / key
      if (path.stat().st_size if path.exists() else 0) < size:
        log.warning("%s is shorter than when it was saved: beginning anew", path)
        self.damaged = {}
        return False
    for key, size in sizes.items():
      os.truncate(self._folder / key, size)
    self._count, self._shapes = (state["done"], rows), shapes
    return True

  def _bytes(self, shape: Sequence[int]) -> int:
    return math.prod(shape) * np.dtype(self._job["dtype"]).itemsize

  def marks(self) -> np.ndarray:
    """What `append` was told of the items that are done: int64 [done, 2], -1 without a row."""
    marks = np.full((self.done, 2), -1)
    items = self._items()
    marks[items[:, 0]] = items[:, 1:]
    return marks

  def _items(self) -> np.ndarray:
    """The item, and its marks, of each row: int64 [rows, 3]."""
    count = self._count[1]
    if not count:
      return np.zeros((0, 3), np.int64)
    if ITEMS in self._files:
      self._files[ITEMS].flush()
    return np.fromfile(self._folder / ITEMS, np.int64, count * 3).reshape(-1, 3)

  def append(self, arrays: Mapping[str, np.ndarray], items: Sequence[int],
             marks: Sequence[tuple[int, int]], damaged: Mapping[int, str]):
    """Adds rows.

    Args:
      arrays: [n, ...] each, of the n items that are not damaged.
      items: numbers of these and of the damaged ones: of any that are done, or that come next.
      marks: two integers for each of `items`, by which to tell later if it has changed.
      damaged: why, by number, of those items that have no row.

    Raises:
      OSError: the disk is full or broken.
    """
    good = [(item, *mark) for item, mark in zip(items, marks) if item not in damaged]
    for key, rows in {**arrays, ITEMS: np.array(good, np.int64).reshape(-1, 3)}.items():
      if len(rows) != len(good):
        raise ValueError(f"{len(rows)} rows of {key} for {len(good)} items")
      if good:
        with _writing(self._folder / key, rows.nbytes):
          self._open(key, rows.shape[1:]).write(rows.tobytes())
    # Should an exception fall between these lines, an item lacks both row and reason, or has both:
    # `marks` lets it be read again.
    for item in items:
      self.damaged.pop(item, None)
    self.damaged.update(damaged)
    self._count = max(self.done, max(items, default=-1) + 1), self._count[1] + len(good)
    if time.monotonic() - self._committed > COMMIT_SECONDS:
      self.commit()

  def _open(self, key: str, shape: Sequence[int]) -> BinaryIO:
    if key not in self._files:
      # What no state knows of is left from a run that was killed.
      known = key in self._shapes or (key == ITEMS and self._count[1])
      self._files[key] = (self._folder / key).open("ab" if known else "wb")
      self._made = True
      if key != ITEMS:
        self._shapes[key] = list(shape)
    return self._files[key]

  def commit(self):
    """Makes sure that all rows so far survive.

    Raises:
      OSError: the disk is full or broken; the former state is still there.
    """
    done, rows = self._count
    for key, file in self._files.items():
      with _writing(self._folder / key, 0):
        file.flush()
        os.fsync(file.fileno())
    if self._made:
      sync(self._folder)
      self._made = False
    text = json.dumps(dict(job=self._job, done=done, rows=rows, damaged=self.damaged,
                           shapes=self._shapes if rows else {}, placed=self._placed))
    with _synced(self._folder / NEW, len(text)) as file:
      file.write(text.encode())
    with _writing(self._folder / STATE, len(text)):
      (self._folder / NEW).replace(self._folder / STATE)
      sync(self._folder)
    self._committed = time.monotonic()

  def finish(self, names: Sequence[str]):
    """Writes the file with the rows in the order of their items.

    The file has its name only when it is complete and on the disk; a kill at any moment leaves
    what the same call needs to do it again. The folder is deleted.

    Args:
      names: of all items.

    Raises:
      FileExistsError: a file of its name has come to be meanwhile.
      OSError: the disk is full or broken.
      ValueError: the names are too long for a .safetensors file, or not as many as the items; or
        none of these has a row.
    """
    out = self._out
    if len(names) != self.done:
      raise ValueError(f"{len(names)} names for {self.done} items")
    self.commit()
    row = np.full(self.done, -1)  # of each item
    row[self._items()[:, 0]] = np.arange(self._count[1])
    row[np.array(list(self.damaged), int)] = -1
    kept = np.flatnonzero(row >= 0)
    if not len(kept):
      raise ValueError("no item has a row")
    notes = dict(self._job, names=[names[i] for i in kept],
                 damaged={names[i]: reason for i, reason in sorted(self.damaged.items())})
    shapes = {key: [len(kept), *shape] for key, shape in self._shapes.items()}
    pieces = [(WHOLE, out)]
    for name in (WHOLE, NAMES):  # may be other names of finished files: never write into them
      (self._folder / name).unlink(missing_ok=True)
    if out.suffix == ".npy":
      (key, shape), = shapes.items()
      pieces.insert(0, (NAMES, names_of(out)))
      text = json.dumps(dict(notes, array=key), indent=0).encode()
      with _synced(self._folder / NAMES, len(text)) as file:
        file.write(text)
    size = sum(math.prod(shape) for shape in shapes.values()) * self._bytes(())
    with _synced(self._folder / WHOLE, size) as file:
      if out.suffix == ".npy":
        np.lib.format.write_array_header_1_0(file, dict(
            descr=np.dtype(self._job["dtype"]).str, fortran_order=False, shape=tuple(shape)))
      else:
        file.write(self._safetensors_header(shapes, notes))
      for key in shapes:
        self._copy(key, row[kept], file)
    self._place(pieces)
    self._clear()

  def _copy(self, key: str, rows: np.ndarray, file: BinaryIO):
    """Writes the chosen rows of a raw file."""
    if np.array_equal(rows, np.arange(self._count[1])):
      with (self._folder / key).open("rb") as source:
        shutil.copyfileobj(source, file, 2**20)
      return
    width = self._bytes(self._shapes[key])
    source = np.memmap(self._folder / key, np.uint8, "r").reshape(-1, width)
    step = max(CHUNK // width, 1)
    for start in range(0, len(rows), step):
      file.write(source[rows[start:start + step]].tobytes())

  def _place(self, pieces: Sequence[tuple[str, pathlib.Path]]):
    """Gives finished files their names, the last one last; none that is there is overwritten."""
    for _, path in pieces:
      if os.path.lexists(path):
        if not is_ours(path, self._folder):
          raise _taken(path)
        path.unlink()
    self._placed = {path.name: _mark(self._folder / name) for name, path in pieces}
    self.commit()  # now they are known as ours
    for name, path in pieces:
      try:
        os.link(self._folder / name, path)
      except FileExistsError:
        raise _taken(path) from None
      except OSError:  # a file system without hard links
        if os.path.lexists(path):
          raise _taken(path) from None
        with _writing(path, 0):
          (self._folder / name).rename(path)
    sync(pieces[-1][1].parent)

  def _clear(self):
    """Deletes the folder, the state last: until then it says what has been placed."""
    for file in self._files.values():
      file.close()
    for name in (*self._shapes, ITEMS, WHOLE, NAMES, NEW, STATE):
      (self._folder / name).unlink(missing_ok=True)
    self._files, self.finished = {}, True
    with contextlib.suppress(OSError):  # it holds something else, too
      self._folder.rmdir()

  def _safetensors_header(self, shapes: dict[str, list[int]], notes: dict[str, Any]) -> bytes:
    header, end = {"__metadata__": {key: x if isinstance(x, str) else json.dumps(x)
                                    for key, x in notes.items()}}, 0
    for key, shape in shapes.items():
      start, end = end, end + math.prod(shape) * self._bytes(())
      header[key] = dict(dtype=dict(float32="F32", float16="F16")[self._job["dtype"]], shape=shape,
                         data_offsets=[start, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_BYTES:
      raise ValueError(f"the {len(notes['names']):,} names, with what is damaged, do not fit in a "
                       f".safetensors file: rename {self._folder} to end in .npy.partial and take "
                       "a .npy")
    return len(text).to_bytes(8, "little") + text


def _stored(folder: pathlib.Path) -> dict[str, Any] | None:
  """The state in a folder; None, with a line in the log, where it is of no use."""
  path = folder / STATE
  try:
    state = json.loads(path.read_bytes())
    return {key: kind(state[key]) for key, kind in KINDS.items()}
  except FileNotFoundError:
    return None
  except (ValueError, TypeError, KeyError):
    log.warning("%s is not whole: beginning anew", path)
    return None


def is_ours(path: pathlib.Path, folder: pathlib.Path) -> bool:
  """Whether a file is one that `Rows.finish`, killed before its end, wrote from this folder."""
  state = _stored(folder) or {}
  return path.exists() and state.get("placed", {}).get(path.name) == _mark(path)


def _mark(path: pathlib.Path) -> list[int]:
  """Size and time of a file, which it keeps when it gets another name."""
  stat = path.stat()
  return [stat.st_size, stat.st_mtime_ns]


@contextlib.contextmanager
def _synced(path: pathlib.Path, size: int) -> Iterator[BinaryIO]:
  """A new file that is on the disk at the end of the block."""
  with _writing(path, size), path.open("wb") as file:
    yield file
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _writing(path: pathlib.Path, size: int):
  """Makes one line of what goes wrong while `size` bytes are written."""
  try:
    yield
  except OSError as error:
    if error.errno is None:
      raise
    reason = error.strerror
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      free = shutil.disk_usage(path.parent).free
      reason += f": {_amount(size)} to write, {_amount(free)} free" if size else (
          f": {_amount(free)} free")
    raise OSError(f"{path} cannot be written ({reason}): make room or mend it, and the same "
                  "command goes on from here") from error


def _taken(path: pathlib.Path) -> FileExistsError:
  return FileExistsError(f"{path} has come to be meanwhile: move it away, and the same command "
                         "goes on from here")


def _amount(size: int) -> str:
  return f"{size / 1e6:,.1f} MB" if size >= 10**6 else f"{size / 1e3:.0f} kB"


def names_of(path: pathlib.Path) -> pathlib.Path:
  """The file beside a .npy that has the names of its rows."""
  return path.with_suffix(".json")


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], list[str]]:
  """The arrays of a file that `Rows` wrote, and the names of their rows."""
  path = pathlib.Path(path)
  if path.suffix == ".npy":
    notes = json.loads(names_of(path).read_text())
    return {notes["array"]: np.load(path, mmap_mode="r")}, notes["names"]
  with safe_open(path, "numpy") as file:
    arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    return arrays, json.loads(file.metadata()["names"])
