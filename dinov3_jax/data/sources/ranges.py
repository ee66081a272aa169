"""Reads parts of files by offset and size, from any number of threads; buckets through a cache."""

import hashlib
import os
import pathlib
import threading
import zlib

import numpy as np

from dinov3_jax.data.sources import places
from dinov3_jax.data.walk import printable

OPEN = 256  # files that a process keeps open at once; a cached part of a bucket takes two
CHECKED = 2**26  # bytes, at most, that are added to a cache before its size is looked at again


def cache_folder() -> pathlib.Path:
  """Where indices and caches are kept: $DINOV3_JAX_CACHE, or ~/.cache/dinov3_jax."""
  return pathlib.Path(os.environ.get("DINOV3_JAX_CACHE") or
                      os.path.expanduser("~/.cache/dinov3_jax"))


class Ranges:
  """Bytes of files by number.

  It pickles as its paths and marks; a process opens what it reads.

  Args:
    paths: of the files, here or in buckets.
    marks: of each, from `places.mark`, when its offsets were found out.
    cache_gb: of disk, over all sources, for what is read from buckets (10**9 bytes). What has been
      read is kept until the cache is full. After that nothing is evicted: in passes over shuffled
      images, what was read longest ago is needed as soon as anything else.

  Raises (on reading):
    OSError: a file is gone, has changed since its mark, or a bucket cannot be reached.
  """

  def __init__(self, paths: list[str], marks: list[list], cache_gb: float = 0.0):
    self.paths, self._marks, self._cache_gb = paths, marks, cache_gb
    self._open, self._lock, self._room = {}, threading.Lock(), None

  def __getstate__(self):
    return dict(paths=self.paths, _marks=self._marks, _cache_gb=self._cache_gb)

  def __setstate__(self, state):
    self.__dict__.update(state, _open={}, _lock=threading.Lock(), _room=None)

  def read(self, file: int, offset: int, size: int, row: int = 0) -> bytes:
    """`size` bytes from `offset` on.

    Args:
      file: its number.
      offset, size: of the part; size -1 is all that follows.
      row: the number of the part in its data set, by which a cache knows it.
    """
    path = self.paths[file]
    if places.is_remote(path):
      return self._remote(file, offset, size, row)
    with self._lock:
      handle = self._open.get(file) or self._open_local(file)
    data = os.pread(handle.number, handle.size - offset if size < 0 else size, offset)
    if len(data) < size:
      raise OSError(f"{printable(path)} ends after {offset + len(data):,} bytes, within a part "
                    "that its index names")
    return data

  def _open_local(self, file: int):
    self._drop(1)
    handle = _Handle(self.paths[file])
    if self._marks[file] and handle.mark != self._marks[file]:
      raise OSError(f"{printable(self.paths[file])} has changed since its index was made: start "
                    "anew, which makes it again")
    self._open[file] = handle
    return handle

  def _drop(self, wanted: int):
    """Forgets what was opened first, until `wanted` more files may be open."""
    while self._open and sum(map(_files, self._open.values())) + wanted > OPEN:
      self._open.pop(next(iter(self._open)))  # closed once nobody reads it any more

  def _remote(self, file: int, offset: int, size: int, row: int) -> bytes:
    path = self.paths[file]
    with self._lock:
      if file not in self._open:
        self._drop(2 if self._cache_gb else 1)
        self._open[file] = (*places.file_system(path), self._cache(path, file))
      fs, inner, cache = self._open[file]
    data = cache and size >= 0 and cache.get(row, offset, size)
    if data:
      return data
    try:
      data = fs.cat_file(inner, start=offset or None, end=None if size < 0 else offset + size)
    except Exception as error:
      raise OSError(str(places.unreadable(path, error))) from error
    if len(data) < size:
      raise OSError(f"{printable(path)} ends within a part that its index names: start anew, which "
                    "makes it again")
    if cache and size >= 0:
      cache.put(row, offset, data)
    return data

  def _cache(self, path: str, file: int):
    if not self._cache_gb:
      return None
    key = hashlib.sha256(repr((path, self._marks[file])).encode()).hexdigest()[:24]
    folder, limit = cache_folder() / "ranges", int(self._cache_gb * 1e9)
    self._room = self._room or Room(folder, limit)
    return Cache(folder / key, limit, self._room)


def _files(opened) -> int:
  """The files that an entry of `Ranges` keeps open, at most; one without any counts as one."""
  return 2 if isinstance(opened, tuple) and opened[2] else 1


class _Handle:
  """An open file of this machine; closed when nobody reads it any more."""

  def __init__(self, path: str):
    self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stat = os.fstat(self.number)
    self.size, self.mark = stat.st_size, [stat.st_size, stat.st_mtime_ns]

  def __del__(self):
    if hasattr(self, "number"):
      os.close(self.number)


class Room:
  """The room that is left in a folder of caches. The caches of a `Ranges` share it, so that those
  that are closed and opened again need not look through the folder each time.

  Args:
    folder: of the caches.
    limit: bytes that all caches in it may take together.
  """

  def __init__(self, folder: pathlib.Path, limit: int):
    self._folder, self._limit = folder, limit
    self._step = self._added = min(CHECKED, limit // 16)
    self.full = False

  def take(self, size: int) -> bool:
    """Whether `size` more bytes may be written."""
    if self._added + size > self._step and not self.full:
      self._added = 0
      self.full = self.taken() + size > self._limit
    if not self.full:
      self._added += size
    return not self.full

  def taken(self) -> int:
    """The bytes on the disk that all caches of the folder take."""
    return sum(entry.stat().st_blocks * 512 for entry in os.scandir(self._folder))


class Cache:
  """Parts of one file that lie where they lie in it: `data` is sparse, and `sums` says which are
  there, by a checksum each. Any number of processes may use it.

  Args:
    path: of the two files, without their suffixes.
    limit: bytes that all caches in the folder may take together.
    room: of the folder, where caches share it.
  """

  def __init__(self, path: pathlib.Path, limit: int, room: Room | None = None):
    path.parent.mkdir(parents=True, exist_ok=True)
    self._room = room or Room(path.parent, limit)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    self._data = os.open(path.with_suffix(".data"), flags, 0o666)
    self._sums = os.open(path.with_suffix(".sums"), flags, 0o666)

  def __del__(self):
    for name in ("_data", "_sums"):
      if hasattr(self, name):  # not where opening it failed
        os.close(getattr(self, name))

  def get(self, row: int, offset: int, size: int) -> bytes | None:
    """A part, if it is there and whole."""
    found = os.pread(self._sums, 8, row * 8)
    if len(found) < 8 or found == bytes(8):
      return None
    data = os.pread(self._data, size, offset)
    return data if len(data) == size and found == _sum(data) else None

  def put(self, row: int, offset: int, data: bytes):
    """Keeps a part while there is room."""
    if not self._room.take(len(data)):
      return
    try:
      os.pwrite(self._data, data, offset)
      os.pwrite(self._sums, _sum(data), row * 8)  # last: a part counts once it is written
    except OSError:  # a full disk; the part was read all the same
      self._room.full = True

  def taken(self) -> int:
    """The bytes on the disk that all caches of the folder take."""
    return self._room.taken()


def _sum(data: bytes) -> bytes:
  return np.uint64(zlib.crc32(data) + 2**32).tobytes()  # never zero, which means: not there
