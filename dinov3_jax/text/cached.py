"""What the frozen backbone makes of a few views of each image, computed once and kept on disk.

Steps that begin with features leave out the backbone and the images, which are most of the work
where the backbone is larger than what learns. In return the views are `features.views` fixed ones
an image, not new ones in every pass.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dinov3_jax.data.decode import DamagedImage
from dinov3_jax.data.lock import FolderLock
from dinov3_jax.data.pairs import Pairs
from dinov3_jax.data.rows import Rows, names_of, read
from dinov3_jax.data.sources.notes import spread
from dinov3_jax.data.sources.ranges import cache_folder
from dinov3_jax.data.walk import printable
from dinov3_jax.text.backbone import Backbone
from dinov3_jax.text.step import make_features
from dinov3_jax.text.stream import Windows
from dinov3_jax.train.images import DECODING
from dinov3_jax.train.sharding import data_shards, place_batch
from dinov3_jax.weights import checksums

log = logging.getLogger(__name__)

VERSION = 1  # of what the files hold
KEY = "features"
VIEWS = 256  # that the backbone sees at once, about
TELL_SECONDS = 60.0


class CachedPairs:
  """Pairs whose images are the backbone's tokens of some views; see `data.pairs.Pairs`.

  `pairs[i]` has `features`, [V, T, D] for V views, the tokens in the order CLS, storage and
  patches, and `captions`, a list of strings. It raises DamagedImage for an image that could not be
  read when the features were computed.
  """

  labels, classes = None, None

  def __init__(self, pairs: Pairs, path: pathlib.Path, dtype: Any):
    """Args:
      pairs: images and captions.
      path: of the file that `open_cached` has written for them.
      dtype: of the features.
    """
    self._path, self._dtype = path, jnp.dtype(dtype)
    self._captions = pairs.captions
    self._map()
    _, kept = read(path)
    self._row = np.full(len(pairs), -1)
    self._row[np.array(kept, int)] = np.arange(len(kept))

  def _map(self):
    (stored,) = read(self._path)[0].values()
    self._features = stored.view(self._dtype)

  def __getstate__(self):
    return {name: x for name, x in self.__dict__.items() if name != "_features"}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self._map()  # another process maps the same file

  def __len__(self) -> int:
    return len(self._row)

  @property
  def shape(self) -> tuple[int, int]:
    """Of the tokens of one view, [T, D]."""
    return self._features.shape[2:]

  @property
  def dtype(self) -> np.dtype:
    return self._dtype

  def __getitem__(self, index: int) -> dict[str, Any]:
    row = self._row[index]
    if row < 0:
      raise DamagedImage(f"image {index}", "it could not be read when the backbone's features "
                         f"were computed; see {names_of(self._path)}")
    return {KEY: self._features[row], "captions": self._captions[index]}


def open_cached(pairs: Pairs, backbone: Backbone, config, mesh: Mesh) -> CachedPairs:
  """The features of pairs from the cache, computed first where they are not there.

  They lie in `features.folder`, by default `features` in the folder of caches, under a name that
  follows from the backbone's digest, the data, the views and the computation's dtype. What a stop
  has left half done is gone on with.

  Args:
    pairs: images and captions.
    backbone: the frozen one.
    config: of the run.
    mesh: of the devices, which share the work.

  Raises:
    ValueError: several processes; no image can be read.
    OSError: another run is computing them; the disk has too little room, or is broken.
  """
  if jax.process_count() > 1:
    raise ValueError(f"features.views is {config.features.views}, and the cache is for runs of one "
                     f"process, not of {jax.process_count()}: set it to 0")
  job = dict(version=VERSION, backbone=backbone.digest, views=config.features.views,
             seed=config.seed, dtype=_stored(config.train.dtype), images=config.images.to_dict(),
             computed=config.train.dtype, data=fingerprint(pairs, config.data))
  job = json.loads(json.dumps(job))  # as it is read again, lists for tuples
  folder = pathlib.Path(config.features.folder or cache_folder() / "features").expanduser()
  path = folder / f"{checksums.of_json(job)}.npy"
  if not path.is_file():
    folder.mkdir(parents=True, exist_ok=True)
    _compute(pairs, backbone, config, mesh, path, job)
  else:
    log.info("the backbone's features come from %s", path)
  return CachedPairs(pairs, path, config.train.dtype)


def fingerprint(pairs: Pairs, settings) -> str:
  """Tells the images of pairs from others, without reading them all.

  It follows from the names of all images, size and time of their files where they have any, the
  settings that decide how they are read, and the pixels of a few.

  Args:
    pairs: images and captions.
    settings: the section `data` of a run.
  """
  digest = hashlib.sha256(repr(sorted(
    (key, settings[key]) for key in DECODING.intersection(settings.keys()))).encode())
  images, add = pairs.images, lambda text: digest.update(text.encode("utf-8", "surrogateescape"))
  if hasattr(images, "index"):
    add(repr((images.index.files, images.index.marks)))
  paths = images.paths() if hasattr(images, "paths") else None
  for i in map(int, pairs.chosen):
    add(f"{images.name(i)}\0")
    if paths is not None:
      add(_mark(images.root / paths[i]))
  for i in spread(len(pairs)):
    try:
      pixels = pairs[i]["image"]
      digest.update(repr(pixels.shape).encode() + pixels.tobytes())
    except DamagedImage as error:
      add(str(error))
  return digest.hexdigest()


def tokens_of(features: jax.Array, storage: int) -> dict[str, jax.Array]:
  """Cached tokens [B, 1 + R + N, D] as a backbone returns them: `cls`, `storage` and `patches`."""
  return dict(cls=features[:, 0], storage=features[:, 1:1 + storage],
              patches=features[:, 1 + storage:])


def _mark(path: pathlib.Path) -> str:
  try:
    stat = path.stat()
  except OSError:
    return "gone"
  return f"{stat.st_size} {stat.st_mtime_ns}"


def _stored(dtype: str) -> str:
  """The dtype of the file, in which NumPy cannot write bfloat16 by its name."""
  return "uint16" if dtype == "bfloat16" else dtype


def _compute(pairs: Pairs, backbone: Backbone, config, mesh: Mesh, path: pathlib.Path,
             job: dict[str, Any]):
  """Writes the file, or does the rest of it.

  Raises:
    ValueError: no image can be read.
    OSError: see `open_cached`.
  """
  partial = path.with_suffix(".npy.partial")
  seen = jax.eval_shape(make_features(config, backbone.settings), backbone.params,
                        jax.ShapeDtypeStruct((1, *Windows.of(config.images).shape), np.uint8))
  size = (len(pairs) * config.features.views * sum(x.size for x in seen.values())
          * np.dtype(job["dtype"]).itemsize)
  _check_room(path.parent, partial, size)
  log.info("computing the backbone's features of %s images, %d views each: %.1f MB in %s",
           f"{len(pairs):,}", config.features.views, size / 1e6, path)
  with contextlib.ExitStack() as stack:
    stack.callback(_remove_if_empty, partial)
    stack.enter_context(FolderLock(partial, "features of a backbone"))
    if path.is_file():  # another process has finished it meanwhile
      return
    rows = stack.enter_context(Rows(partial, path, job))
    if not rows.finished:
      start, told, began = rows.done, time.monotonic(), time.monotonic()
      for features, items, damaged in _batches(pairs, backbone, config, mesh, start):
        rows.append({KEY: features.view(job["dtype"])}, items, [(-1, -1)] * len(items), damaged)
        if time.monotonic() - told > TELL_SECONDS:
          told = time.monotonic()
          log.info("features of %s of %s images, %.0f a second", f"{rows.done:,}",
                   f"{len(pairs):,}", (rows.done - start) / (told - began))
      for reason in list(rows.damaged.values())[:10]:
        log.warning("Damaged image, which has no features: %s.", reason)
      if len(rows.damaged) == len(pairs):
        raise ValueError(f"none of the {len(pairs):,} images can be read "
                         f"({next(iter(rows.damaged.values()))}); check the data set")
      rows.finish([str(i) for i in range(len(pairs))])


def _check_room(folder: pathlib.Path, partial: pathlib.Path, size: int):
  """Raises an OSError if the disk cannot hold the rows, and the file that is made of them."""
  free = shutil.disk_usage(folder).free
  done = sum(file.stat().st_size for file in partial.glob("*")) if partial.is_dir() else 0
  if 2 * size - done > free:
    raise OSError(f"the backbone's features take {2 * size / 1e9:,.1f} GB in {folder} while they "
                  f"are written, and {free / 1e9:,.1f} GB are free: set features.folder, or fewer "
                  "features.views")


def _remove_if_empty(folder: pathlib.Path):
  with contextlib.suppress(OSError):
    folder.rmdir()


def _batches(pairs: Pairs, backbone: Backbone, config, mesh: Mesh, start: int
             ) -> Iterator[tuple[np.ndarray, list[int], dict[int, str]]]:
  """Features [n, V, T, D] of the images from `start` on, their numbers, and what is damaged.

  While the devices compute, the next images are read.
  """
  views, shards = config.features.views, data_shards(mesh)
  count = max(VIEWS // views, 1)
  filled = -(-count * views // shards) * shards
  window = Windows.of(config.images)
  compute = jax.jit(make_features(config, backbone.settings, mesh))

  def see(index):
    try:
      image = pairs[index]["image"]
    except DamagedImage as error:
      return str(error)
    return [window({"image": image}, np.random.default_rng([config.seed, index, view]))
            for view in range(views)]

  def finish(tokens, items, damaged):
    good = len(items) - len(damaged)
    joined = np.concatenate([np.asarray(tokens[name]) for name in ("cls", "storage", "patches")
                             if name in tokens], axis=1)
    return joined[:good * views].reshape(good, views, *joined.shape[1:]), items, damaged

  pending = None
  with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
    for first in range(start, len(pairs), count):
      items = list(range(first, min(first + count, len(pairs))))
      seen = dict(zip(items, threads.map(see, items)))
      damaged = {i: printable(x) for i, x in seen.items() if isinstance(x, str)}
      images = np.zeros((filled, *window.shape), np.uint8)
      good = [view for i in items if i not in damaged for view in seen[i]]
      if good:
        images[:len(good)] = good
      tokens = compute(backbone.params, place_batch(images, mesh))
      tokens["cls"] = tokens["cls"][:, None]
      if pending is not None:
        yield finish(*pending)
      pending = tokens, items, damaged
  if pending is not None:
    yield finish(*pending)
