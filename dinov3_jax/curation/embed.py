"""Features of a source's images into shards on disk."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.curation import disk
from dinov3_jax.curation.progress import Report, silent
from dinov3_jax.curation.store import SHARD, Store
from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.data.reach import Reach
from dinov3_jax.data.sources import DamagedImage, Source
from dinov3_jax.data.sources.marks import Mark, check_marks, check_names, digest, mark
from dinov3_jax.evals.extraction import fingerprint
from dinov3_jax.models.partition import DATA_AXES

log = logging.getLogger(__name__)


def embed(source: Source, folder: str | os.PathLike, model: nnx.Module, prepare: Preprocess, *,
          spec: str, split: str = "all", batch_size: int = 32, shard_items: int = SHARD,
          mesh: Mesh | None = None, report: Report = silent) -> Store:
  """Writes the class tokens of all images of a source, or what of them is missing.

  Images that were damaged are read again, and get rows where they can be read now. With several
  processes, each makes every n-th of the missing shards with the devices of its own.

  Args:
    source: of images.
    folder: of the shards.
    model, prepare: as from `dinov3_jax.evals.backbone.open_model`.
    spec, split: what `open_source` took, by which `look` and `mix` find the images again.
    batch_size: images at once, on all devices of this process together.
    shard_items: images a shard.
    mesh: that the model is laid out on, with the axes of training; None: one device.
    report: of progress.

  Returns:
    The store, whole.

  Raises:
    ValueError: the folder has the features of another job, or of other images; no image can be
      read.
    OSError: images cannot be reached, see `Reach`. The same call goes on once they can.
  """
  width = jax.eval_shape(lambda x: model(x)["cls"], np.zeros(
    (1, *np.broadcast_to(prepare.size, 2), 3), np.float32)).shape[-1]
  store = Store.create(folder, dict(
    source=str(spec), split=split, items=len(source), shard_items=shard_items, dim=width,
    model=fingerprint(model), preprocessing=str(prepare)))
  faults = {shard: fault for shard in range(store.shards) if (fault := store.fault(shard))}
  for shard, fault in faults.items():
    if (store.folder / f"{shard:05}.npy").exists():
      log.warning("%s: it is made again", fault)
  for shard in set(range(store.shards)) - faults.keys():
    _check(store, shard, source)
  todo = {shard: items for shard in range(store.shards) if (
    items := list(store.items(shard)) if shard in faults else _without_row(store, shard))}
  own = list(todo)[jax.process_index()::jax.process_count()]
  disk.wait()
  total = sum(len(todo[shard]) for shard in own)
  done = itertools.count(batch_size, batch_size)
  tell = lambda: report(min(next(done) / total, 1), f"{total:,} images")
  reach = Reach()
  for shard in own:
    compute = lambda items: _compute(source, items, model, prepare, batch_size, mesh, reach, tell)
    if shard in faults:
      _write(store, shard, *compute(todo[shard]))
    else:
      _add(store, shard, source, *compute(todo[shard]))
  disk.wait()
  store = Store(folder)
  store.check()
  return store


class _Row(NamedTuple):
  """Where in the source a row's image is, its name and its mark."""

  item: int
  name: str
  mark: Mark


def _check(store: Store, shard: int, source: Source) -> list[Mark]:
  """The marks of the images of a shard's rows.

  Raises:
    ValueError: they are not those that the source has in these places now.
  """
  noted, what = store.noted(shard), store.notes["source"]
  anew = f"delete {store.folder}, or choose another --dir"
  check_names(source, store.items(shard), noted["names"], noted["damaged"], what, anew)
  return check_marks(source, noted["items"], noted["marks"], what, anew)


def _without_row(store: Store, shard: int) -> list[int]:
  """The images of a whole shard that were damaged."""
  return sorted(set(store.items(shard)) - set(store.noted(shard)["items"]))


def _write(store: Store, shard: int, array: np.ndarray, rows: list[_Row], damaged: dict[str, str]):
  store.write(shard, array, [row.item for row in rows], [row.name for row in rows], damaged,
              digest(row.mark for row in rows))


def _add(store: Store, shard: int, source: Source, array: np.ndarray, rows: list[_Row],
         damaged: dict[str, str]):
  """Adds rows to a shard that is whole; without any, it stays as it is."""
  if not rows:
    return
  log.warning("%s: %d images that were damaged can be read now", store.folder / f"{shard:05}.npy",
              len(rows))
  noted = store.noted(shard)
  rows = [*map(_Row, noted["items"], noted["names"], _check(store, shard, source)), *rows]
  order = sorted(range(len(rows)), key=lambda i: rows[i].item)
  array = np.concatenate([disk.read_array(store.folder / f"{shard:05}.npy"), array])
  _write(store, shard, array[order], [rows[i] for i in order], damaged)


def _compute(source: Source, items: Sequence[int], model: nnx.Module, prepare: Preprocess,
             batch_size: int, mesh: Mesh | None, reach: Reach, tell: Callable[[], None]
             ) -> tuple[np.ndarray, list[_Row], dict[str, str]]:
  """Features of images [rows, d], what they are of, and why the others are damaged."""
  place = None if mesh is None else NamedSharding(mesh, P(DATA_AXES))
  devices = 1 if mesh is None else mesh.size
  batch_size = -(-batch_size // devices) * devices
  features, rows, damaged = [], [], {}

  def compute(array, *rest):
    return model(jax.device_put(array, place))["cls"], *rest

  for cls, good, bad in _one_ahead(compute(*batch) for batch in _batches(
      source, items, prepare, batch_size, reach)):
    features.append(np.asarray(cls, np.float32)[:len(good)])
    rows += good
    damaged |= bad
    tell()
  return np.concatenate(features), rows, damaged


def _batches(source: Source, items: Sequence[int], prepare: Preprocess, batch_size: int,
             reach: Reach) -> Iterator[tuple[np.ndarray, list[_Row], dict[str, str]]]:
  """Images [batch_size, h, w, 3] with zeros behind the good ones; what these are; and why the
  others are damaged."""
  def read(item):
    known = mark(source, item)  # before: a change while it is read must be noticed later
    try:
      image = source[item]
      return _Row(item, image["name"], known), prepare(image["image"])
    except DamagedImage as error:
      return None, error

  with ThreadPoolExecutor() as threads:
    groups = (items[i:i + batch_size] for i in range(0, len(items), batch_size))
    reading = ([threads.submit(read, item) for item in group] for group in groups)
    for futures in _one_ahead(reading):
      array = np.zeros((batch_size, *np.broadcast_to(prepare.size, 2), 3), np.float32)
      rows, damaged = [], {}
      for row, found in (future.result() for future in futures):
        reach(None if row else found)
        if row:
          array[len(rows)] = found
          rows.append(row)
        else:
          damaged[found.name] = found.reason
      yield array, rows, damaged


def _one_ahead(items: Iterable) -> Iterator:
  """The same items, each when the next one has been begun."""
  for item, _ in itertools.pairwise(itertools.chain(items, [None])):
    yield item
