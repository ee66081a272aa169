"""Images that are files of their own: those of a list, or of a bucket."""

import hashlib
import os
import threading

from dinov3_jax.data.decode import DamagedImage, Decoder
from dinov3_jax.data.sources import places
from dinov3_jax.data.sources.encoded import EncodedSource
from dinov3_jax.data.sources.index import Entry, Found, Index, build
from dinov3_jax.data.sources.marks import Mark, file_mark
from dinov3_jax.data.sources.ranges import Cache, cache_folder
from dinov3_jax.data.walk import SUFFIXES, printable


def open_bucket_folder(what: str, root: str, split: str, decoder: Decoder, cache_gb: float = 0.0
                       ) -> EncodedSource:
  """The JPEG, PNG and WebP objects below a prefix of a bucket, laid out as `FolderSource` reads a
  folder. They are listed anew every time: of millions, tars are faster to open and to read.

  Raises:
    ValueError: the bucket cannot be listed, or has no image there.
  """
  fs, inner = places.file_system(root)
  try:
    listing = fs.find(inner, detail=True)
  except Exception as error:
    raise places.unreadable(root, error) from error
  top = fs._strip_protocol(inner).rstrip("/") + "/"
  entries, at = [], 0
  for path, info in sorted(listing.items()):
    name = path.removeprefix(top)
    if not path.lower().endswith(SUFFIXES) or any(part[:1] == "." for part in name.split("/")):
      continue
    # Where it lies in the cache, one after the other.
    entries.append(Entry(name, at, info["size"]))
    at += info["size"]
  if not entries:
    raise ValueError(f"no image below {printable(root)}; JPEG, PNG and WebP files count "
                     f"({', '.join(SUFFIXES)})")
  index = build([root], [None], [Found(entries)])
  listed = hashlib.sha256(index.text.tobytes() + index.size.tobytes()).hexdigest()
  return EncodedSource(what, index, WholeFiles(root, cache_gb, listed), split, decoder)


class WholeFiles:
  """Reads the files that an index names, below a folder or a URL.

  Args:
    base: what names that are neither whole paths nor URLs begin at.
    cache_gb: see `Ranges`; only for files whose sizes the index has.
    listed: what tells this list from others in the cache.
  """

  def __init__(self, base: str, cache_gb: float = 0.0, listed: str = ""):
    self._base, self._cache_gb, self._listed = base.rstrip("/"), cache_gb, listed
    self._lock, self._systems, self._kept = threading.Lock(), {}, None

  def __getstate__(self):
    return self._base, self._cache_gb, self._listed

  def __setstate__(self, state):
    self.__init__(*state)

  def __call__(self, index: Index, row: int) -> bytes:
    name, offset, size = index.name(row), int(index.offset[row]), int(index.size[row])
    if not places.is_remote(name) and not places.is_remote(self._base):
      try:
        with open(self._local(name), "rb") as file:
          return file.read()
      except OSError as error:
        raise DamagedImage(name, error.strerror) from error
    path = name if places.is_remote(name) else f"{self._base}/{name}"
    cache = self._cache() if size >= 0 else None
    data = cache and cache.get(row, offset, size)
    if data:
      return data
    try:
      data = self._system(path).cat_file(path)
    except FileNotFoundError as error:
      raise DamagedImage(name, "there is no such object") from error
    except Exception as error:
      raise OSError(str(places.unreadable(path, error))) from error
    if cache and len(data) == size:
      cache.put(row, offset, data)
    return data

  def mark(self, index: Index, row: int) -> Mark:
    """What tells whether a file has changed; of an object in a bucket, its size alone."""
    name, size = index.name(row), int(index.size[row])
    if places.is_remote(name) or places.is_remote(self._base):
      return size, -1
    return file_mark(self._local(name))

  def _local(self, name: str) -> str:
    return os.path.join(self._base, os.path.expanduser(name))

  def _cache(self) -> Cache | None:
    with self._lock:
      if self._kept is None and self._cache_gb:
        key = hashlib.sha256(f"{self._base}\n{self._listed}".encode()).hexdigest()[:24]
        self._kept = Cache(cache_folder() / "ranges" / key, int(self._cache_gb * 1e9))
      return self._kept

  def _system(self, path: str):
    scheme = path.split("://")[0]
    with self._lock:
      if scheme not in self._systems:
        self._systems[scheme] = places.file_system(path)[0]
      return self._systems[scheme]
