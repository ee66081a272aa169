"""Features of a source's images into shards on disk."""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.curation import disk
from dinov3_jax.curation.progress import Report, silent
from dinov3_jax.curation.store import SHARD, Store
from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.data.sources import DamagedImage, Source
from dinov3_jax.evals.extraction import fingerprint
from dinov3_jax.models.partition import DATA_AXES

log = logging.getLogger(__name__)


def embed(source: Source, folder: str | os.PathLike, model: nnx.Module, prepare: Preprocess, *,
          spec: str, split: str = "all", batch_size: int = 32, shard_items: int = SHARD,
          mesh: Mesh | None = None, report: Report = silent) -> Store:
  """Writes the class tokens of all images of a source, or what of them is missing.

  With several processes, each makes every n-th of the missing shards with the devices of its own.

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
    ValueError: the folder has the features of another job; no image can be read.
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
  own = list(faults)[jax.process_index()::jax.process_count()]
  disk.wait()
  total = sum(len(store.items(shard)) for shard in own)
  done = itertools.count(batch_size, batch_size)
  tell = lambda: report(min(next(done) / total, 1), f"{total:,} images")
  for shard in own:
    _write_shard(store, shard, source, model, prepare, batch_size, mesh, tell)
  disk.wait()
  store = Store(folder)
  store.check()
  return store


def _write_shard(store, shard, source, model, prepare, batch_size, mesh, tell) -> None:
  place = None if mesh is None else NamedSharding(mesh, P(DATA_AXES))
  devices = 1 if mesh is None else mesh.size
  batch_size = -(-batch_size // devices) * devices
  features, kept, names, damaged = [], [], [], {}

  def compute(array, *rest):
    return model(jax.device_put(array, place))["cls"], *rest

  batches = _batches(source, store.items(shard), prepare, batch_size)
  for cls, items, of, bad in _one_ahead(compute(*batch) for batch in batches):
    features.append(np.asarray(cls, np.float32)[:len(items)])
    kept += items
    names += of
    damaged |= bad
    tell()
  rows = np.concatenate(features) if features else np.zeros((0, store.dim))
  store.write(shard, rows, kept, names, damaged)


def _batches(source: Source, items: range, prepare: Preprocess, batch_size: int
             ) -> Iterator[tuple[np.ndarray, list[int], list[str], dict[str, str]]]:
  """Images [batch_size, h, w, 3] with zeros behind the good ones; the places and names of these;
  and why the others are damaged."""
  def read(item):
    try:
      image = source[item]
      return item, image["name"], prepare(image["image"])
    except DamagedImage as error:
      return item, error.name, error.reason

  with ThreadPoolExecutor() as threads:
    groups = (items[i:i + batch_size] for i in range(0, len(items), batch_size))
    reading = ([threads.submit(read, item) for item in group] for group in groups)
    for futures in _one_ahead(reading):
      results = [future.result() for future in futures]
      good = [result for result in results if not isinstance(result[2], str)]
      array = np.zeros((batch_size, *np.broadcast_to(prepare.size, 2), 3), np.float32)
      for i, (*_, image) in enumerate(good):
        array[i] = image
      yield (array, [item for item, *_ in good], [name for _, name, _ in good],
             {name: reason for _, name, reason in results if isinstance(reason, str)})


def _one_ahead(items: Iterable) -> Iterator:
  """The same items, each when the next one has been begun."""
  for item, _ in itertools.pairwise(itertools.chain(items, [None])):
    yield item
