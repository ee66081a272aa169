"""Features on disk: one folder of shards, float16, with the names of their images.

```
features/manifest.json   where the images are from, how many, what made the features
features/00000.npy       [rows, d] float16, of the first `shard_items` images of the source
features/00000.json      their names, their places in the source, and the damaged ones among them
```

The number of a row, over all shards in order, is what everything else of a curation refers to. A
shard is complete when its .json is there; the .npy was whole before.
"""

import bisect
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dinov3_jax.curation import disk
from dinov3_jax.curation.rows import Chunk, is_finite, padded, place

SHARD = 2**20  # images


class Store:
  """A folder of features.

  Args:
    folder: with a manifest.

  Attributes:
    notes: the manifest: `source`, `split`, `items` (images of the source), `shard_items`, `model`,
      `preprocessing`, `dim`.

  Raises:
    ValueError: no manifest.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)
    file = self.folder / "manifest.json"
    if not file.exists():
      raise ValueError(f"{self.folder} has no features (no {file.name}): run "
                       "`python -m dinov3_jax.curate embed` first")
    self.notes = json.loads(file.read_text())

  @classmethod
  def create(cls, folder: str | os.PathLike, notes: dict[str, Any]) -> "Store":
    """A new folder, or one that was begun with the same notes.

    Raises:
      ValueError: a folder that was begun with others.
    """
    folder = pathlib.Path(folder)
    disk.begin(folder / "manifest.json", notes, "--dir")
    return cls(folder)

  @property
  def shards(self) -> int:
    return -(-self.notes["items"] // self.notes["shard_items"])

  def items(self, shard: int) -> range:
    """The places in the source of a shard's images, the damaged ones included."""
    size = self.notes["shard_items"]
    return range(shard * size, min((shard + 1) * size, self.notes["items"]))

  def write(self, shard: int, array: np.ndarray, items: list[int], names: list[str],
            damaged: dict[str, str], marks: str | None = None) -> None:
    """Writes a shard, in the process that calls.

    Args:
      shard: its number.
      array: [rows, d], stored as float16.
      items, names: the place in the source and the name of each row.
      damaged: why, by name, of images that have no row.
      marks: the `marks.digest` of the images of the rows, by which a change of them is noticed.
    """
    array = np.asarray(array)
    with np.errstate(over="ignore"):
      array = array.astype(np.float16)
    strange = np.flatnonzero(~is_finite(array)).tolist()
    disk.write_array(self._file(shard, "npy"), array, alone=True)
    disk.write_json(self._file(shard, "json"), dict(
      rows=len(array), items=items, names=names, damaged=damaged, marks=marks,
      not_finite=strange), alone=True)

  def noted(self, shard: int) -> dict[str, Any]:
    """What a shard that is whole says of its rows: `items`, `names`, `damaged`, and `marks`, which
    is None where an older version has written it."""
    notes = json.loads(self._file(shard, "json").read_text())
    return dict(notes, marks=notes.get("marks"))

  def _file(self, shard: int, suffix: str) -> pathlib.Path:
    return self.folder / f"{shard:05}.{suffix}"

  def fault(self, shard: int) -> str | None:
    """What is wrong with a shard, None where it is whole."""
    if not self._file(shard, "json").exists():
      return f"{self._file(shard, 'npy')} is missing"
    try:
      rows = json.loads(self._file(shard, "json").read_text())["rows"]
    except (ValueError, KeyError):
      return f"{self._file(shard, 'json')} is cut or damaged"
    try:
      array = disk.read_array(self._file(shard, "npy"), mapped=rows > 0)
    except FileNotFoundError:
      return f"{self._file(shard, 'npy')} is missing"
    except ValueError as error:
      return str(error)
    if array.shape != (rows, self.notes["dim"]):
      return f"{self._file(shard, 'npy')} has {list(array.shape)} in place of {rows} rows"
    return None

  def check(self) -> None:
    """Raises a ValueError that names the first shard that is not whole, and how many are not."""
    faults = [fault for fault in map(self.fault, range(self.shards)) if fault]
    if faults:
      more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
      raise ValueError(f"{faults[0]}{more}: the same `curate embed` again makes only what is not "
                       "whole")
    if not self.rows:
      raise ValueError(f"{self.folder} has no row: none of its images could be read")

  @functools.cached_property
  def _notes_of(self):
    return functools.lru_cache(maxsize=4)(
      lambda shard: json.loads(self._file(shard, "json").read_text()))

  @functools.cached_property
  def offsets(self) -> list[int]:
    """The number of each shard's first row, and how many there are."""
    sizes = (self._notes_of(shard)["rows"] for shard in range(self.shards))
    return list(itertools.accumulate(sizes, initial=0))

  @property
  def rows(self) -> int:
    return self.offsets[-1]

  @property
  def dim(self) -> int:
    return self.notes["dim"]

  @functools.cached_property
  def fingerprint(self) -> str:
    """Tells features apart, by what made them and the places of all rows."""
    digest = hashlib.sha256(json.dumps(self.notes, sort_keys=True).encode())
    for shard in range(self.shards):
      digest.update(self._file(shard, "json").read_bytes())
    return digest.hexdigest()[:16]

  def array(self, shard: int) -> np.ndarray:
    """The features of a shard, left on the disk: [rows, d] float16."""
    return disk.read_array(self._file(shard, "npy"),
                           mapped=self.offsets[shard] < self.offsets[shard + 1])

  def take(self, rows: np.ndarray) -> np.ndarray:
    """Features of any rows: [len(rows), d] float16."""
    out = np.empty((len(rows), self.dim), np.float16)
    for shard, places, inside in self._by_shard(rows):
      out[places] = self.array(shard)[inside]
    return out

  def names(self, rows: np.ndarray) -> list[str]:
    """The names of rows."""
    return self._noted("names", rows)

  def places(self, rows: np.ndarray) -> list[int]:
    """Where rows are in the source."""
    return self._noted("items", rows)

  def _noted(self, key: str, rows: np.ndarray) -> list:
    out = [None] * len(rows)
    for shard, places, inside in self._by_shard(rows):
      values = self._notes_of(shard)[key]
      for place_, row in zip(places.tolist(), inside.tolist()):
        out[place_] = values[row]
    return out

  def _by_shard(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each shard that rows are in: its number, their places in `rows`, and in the shard."""
    rows = np.asarray(rows)
    order = np.argsort(rows, kind="stable")
    cuts = np.searchsorted(rows[order], self.offsets)
    for shard, (begin, end) in enumerate(itertools.pairwise(cuts)):
      if begin < end:
        yield shard, order[begin:end], rows[order[begin:end]] - self.offsets[shard]

  def damaged(self) -> dict[str, str]:
    """Why, by name, of all images without a row."""
    found = {}
    for shard in range(self.shards):
      found |= self._notes_of(shard)["damaged"]
    return found

  def finite(self) -> np.ndarray:
    """Which rows are finite: bool [rows]."""
    good = np.ones(self.rows, bool)
    for shard in range(self.shards):
      good[np.array(self._notes_of(shard)["not_finite"], int) + self.offsets[shard]] = False
    return good

  def shard_of(self, row: int) -> int:
    """The shard that a row is in."""
    return bisect.bisect_right(self.offsets, row) - 1


class StorePoints:
  """Features on disk as `Points`: a chunk for each shard, read while the last one is worked on.

  Args:
    store: whole.
    mesh: from `make_mesh`.
    rows: sorted numbers of those that take part, such as what deduplication kept; None: all. What
      is found about them counts from 0 on, through this array.
    memory: bytes of all devices that chunks may stay in between passes; None: half of what there
      is.
  """

  def __init__(self, store: Store, mesh: Mesh, rows: np.ndarray | None = None,
               memory: float | None = None):
    self.store, self.mesh, self.dim = store, mesh, store.dim
    self._rows = rows
    self.rows = store.rows if rows is None else len(rows)
    cuts = store.offsets if rows is None else np.searchsorted(rows, store.offsets).tolist()
    self._spans = [(shard, begin, end) for shard, (begin, end)
                   in enumerate(itertools.pairwise(cuts)) if begin < end]
    self._capacity = max((end - begin for _, begin, end in self._spans), default=0)
    size = len(self._spans) * padded(self._capacity, mesh) * (2 * self.dim + 1)
    stay = size <= (_memory(mesh) / 2 if memory is None else memory)
    self._kept: dict[int, Chunk] | None = {} if stay else None

  def _chunk(self, number: int) -> Chunk:
    if self._kept is not None and number in self._kept:
      return self._kept[number]
    shard, begin, end = self._spans[number]
    array = self.store.array(shard)
    if end - begin < len(array):
      array = array[self._rows[begin:end] - self.store.offsets[shard]]
    chunk = place(array, self.mesh, begin, self._capacity)
    if self._kept is not None:
      self._kept[number] = chunk
    return chunk

  def chunks(self, start: int = 0) -> Iterator[Chunk]:
    with ThreadPoolExecutor(1) as thread:
      coming = None
      for number in range(start, len(self._spans)):
        chunk = coming.result() if coming else self._chunk(number)
        if number + 1 < len(self._spans):
          coming = thread.submit(self._chunk, number + 1)
        yield chunk

  def sizes(self) -> list[int]:
    return [end - begin for _, begin, end in self._spans]

  def finite(self) -> np.ndarray:
    return self.store.finite() if self._rows is None else self.store.finite()[self._rows]

  def take(self, indices: np.ndarray) -> np.ndarray:
    return self.store.take(indices if self._rows is None else self._rows[indices])


def _memory(mesh: Mesh) -> float:
  """Bytes of memory of all devices."""
  stats = mesh.local_devices[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"] * mesh.size
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * jax.process_count()
