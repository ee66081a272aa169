"""What every task of an evaluation is given: the model, the data, and features kept on disk."""

import dataclasses
import functools
import hashlib
import itertools
import math
import os
import pathlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.data.crops import resize
from dinov3_jax.data.decode import decode
from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.data.rows import read
from dinov3_jax.data.sources.marks import file_mark
from dinov3_jax.data.stored import Stored
from dinov3_jax.data.walk import printable
from dinov3_jax.evals.backbone import patch_side
from dinov3_jax.evals.extraction import Stopped, bar, extract, fingerprint
from dinov3_jax.evals.framing import Framing, normalize
from dinov3_jax.evals.ledger import Ledger
from dinov3_jax.evals.probe_training import Kept


class LayoutError(ValueError):
  """The data are not laid out as a task wants them."""


@dataclasses.dataclass
class Result:
  """What a task found.

  Attributes:
    figures: by name, as they are reported.
    protocol: the settings, as JSON.
    differs: what is not as in the paper, a sentence each.
    paper: the paper's figures, by the names of `figures`, by the name of the model.
    pictures: uint8 canvases [H, W, 3] by file name, or lists of them: the frames of an animation.
  """

  figures: dict[str, float]
  protocol: dict[str, Any]
  differs: list[str] = dataclasses.field(default_factory=list)
  paper: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
  pictures: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Session:
  """A model at work on a folder of data.

  Attributes:
    model, prepare: as from `open_model`; for tasks of text a `DinoText` and its `preprocess`.
    data: the folder, laid out as people download it.
    cache: a folder for features, which later runs use again.
    size: of images in pixels, instead of the task's own; None: the task's.
    limit: how many images (or videos, or pairs) of each split; None: all.
    steps: of a trained probe, instead of the task's own.
    batch_size: images at once.
    progress: show bars.
    stop: asked between batches whether to stop.
    left_out: names of damaged images, and why; the tasks go on without them.
    settings: what a task is to do otherwise than in its protocol, by the names that it asks for
      and that the catalogue has.
    spec: a source in place of a folder of data, as for `open_source`; a path would not keep URLs.
  """

  model: nnx.Module
  prepare: Preprocess
  data: pathlib.Path
  cache: pathlib.Path
  size: int | None = None
  limit: int | None = None
  steps: int | None = None
  batch_size: int = 32
  progress: bool = False
  stop: Callable[[], object] = lambda: False
  left_out: dict[str, str] = dataclasses.field(default_factory=dict)
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  spec: str = ""

  @functools.cached_property
  def digest(self) -> str:
    """Tells this model from others."""
    return self.model.digest if hasattr(self.model, "digest") else fingerprint(self.model)

  @functools.cached_property
  def patch(self) -> int:
    """Side of a patch, in pixels."""
    return patch_side(self.model)

  def options(self, **own) -> tuple[types.SimpleNamespace, list[str]]:
    """A task's options, by name with what its protocol says, as `settings` changes them.

    Returns:
      The options, and a sentence for each that is not as in the protocol.

    Raises:
      ValueError: a value of another type.
    """
    result = dict(own)
    for key in own.keys() & self.settings.keys():
      value, kind = self.settings[key], type(own[key])
      try:
        if kind is bool and value not in (True, False, "true", "false"):
          raise ValueError(value)
        result[key] = value in (True, "true") if kind is bool else kind(value)
      except ValueError as error:
        raise ValueError(f"{key}={value} must be {kind.__name__}, like {own[key]}") from error
    return types.SimpleNamespace(**result), [
      f"{key} = {result[key]}, not {own[key]}" for key in own if result[key] != own[key]]

  def path(self, name: str, wanted: str) -> pathlib.Path:
    """A file or folder of the data; a LayoutError with `wanted`, the layout, if it is not there."""
    path = self.data / name
    if not path.exists():
      there = (sorted(printable(p.name) for p in self.data.iterdir())[:5] if self.data.is_dir()
               else [])
      found = f"it has {', '.join(there)}" if there else "it is empty or no folder"
      raise LayoutError(f"{printable(self.data)} has no {name} ({found}): wanted is {wanted}")
    return path

  def each(self, items: Sequence, what: str) -> Iterator:
    """The items of long work, with a bar that counts `what`; raises Stopped if `stop` says so."""
    with bar(self.progress, what) as shown:
      shown.console.show_cursor(True)  # a killed process must not leave a terminal without
      for item in shown.track(items, description=""):
        self.check_stop()
        yield item

  def check_stop(self):
    """Between two steps of long work: raises Stopped if `stop` says so."""
    if self.stop():
      raise Stopped

  def ledger(self, task: str, settings: Any) -> Ledger:
    """Where a task keeps the results of single items, for this model and these settings."""
    return Ledger(self.cache / f"{task}-{self._key(settings)}.jsonl")

  def kept(self, task: str, settings: Any, files: Iterable[os.PathLike]) -> Kept:
    """Where a task keeps the training of its probes, for this model, these settings and files."""
    names = [os.fspath(path) for path in files]
    names = list(zip(names, marks(names)))
    devices = 1 if self.mesh is None else self.mesh.size
    return Kept(self.cache / f"{task}-{self._key((devices, settings, names))}.npz")

  def _key(self, settings: Any) -> str:
    decides = (self.digest, self.prepare.mean, self.prepare.std, settings)
    return hashlib.sha256(repr(decides).encode("utf-8", "surrogateescape")).hexdigest()[:24]

  def some(self, items: Sequence) -> list:
    """The first `limit` items, spread evenly, so that all classes have their share."""
    if self.limit is None or len(items) <= self.limit:
      return list(items)
    return [items[i * len(items) // self.limit] for i in range(self.limit)]

  def side(self, own: int) -> int:
    """The size that a task of this size works at: whole patches."""
    size = self.size or own
    if size % self.patch:
      raise ValueError(f"a size of {size} is no whole number of the model's patches of "
                       f"{self.patch}: take --size {max(size // self.patch, 1) * self.patch}")
    return size

  def features(self, images: Sequence[os.PathLike], framing: Framing
               ) -> tuple[np.ndarray, np.ndarray]:
    """The CLS features of images, kept on disk under what decides them.

    Returns:
      float32 [n, D], and the places in `images` of those that could be read, int [n].

    Raises:
      Stopped: `stop` said so; the same call goes on from there.
    """
    names = [os.fspath(image) for image in images]
    key = hashlib.sha256("\0".join([self.digest, repr(framing), *names]).encode(
        "utf-8", "surrogateescape"))
    key.update(repr(marks(names)).encode())
    self.cache.mkdir(parents=True, exist_ok=True)
    out = self.cache / f"{key.hexdigest()[:24]}.npy"
    if not out.exists():
      self.left_out |= extract(names, out, self.model, framing, batch_size=self.batch_size,
                               progress=self.progress, stop=self.stop)
    arrays, found = read(out)
    kept = []  # by place, as names may repeat: the rows are in the order of the images
    for i, name in enumerate(map(printable, names)):
      if len(kept) < len(found) and name == found[len(kept)]:
        kept.append(i)
      else:
        self.left_out.setdefault(name, "it could not be read when its features were taken")
    (cls,) = arrays.values()
    return np.array(cls), np.array(kept, int)

  def patches(self, image: np.ndarray, height: int | None = None, width: int | None = None,
              norm: bool = True) -> np.ndarray:
    """The patches of one image, float32 [h, w, D].

    Args:
      image: uint8 [H, W, 3].
      height, width: to which it is resized first (bicubic), whole patches; None leaves it.
      norm: as for `run`.
    """
    if height is not None and image.shape[:2] != (height, width):
      image = resize(image, height, width)
    x = normalize(image, self.prepare.mean, self.prepare.std)[None]
    return np.asarray(self.run(x, norm)[0])

  def frames(self, paths: Sequence[os.PathLike], height: int, width: int) -> Iterator[np.ndarray]:
    """The patches of images that are resized to one size, float32 [h, w, D] each, in order.

    Each device takes an image at a time.
    """
    count = 1 if self.mesh is None else self.mesh.size
    for start in range(0, len(paths), count):
      images = [resize(decode(path, path), height, width) for path in paths[start:start + count]]
      yield from np.asarray(self.run(normalize(np.stack(images), self.prepare.mean,
                                               self.prepare.std)))

  def run(self, images, norm: bool = True) -> jax.Array:
    """The patches of normalised images [B, H, W, 3], float32 [B, h, w, D].

    The devices share the images; the last ones are repeated until each device has as many.

    Args:
      norm: whether they pass the model's final norm.
    """
    rows, columns = (side // self.patch for side in images.shape[1:3])
    count, place = len(images), None
    if self.mesh is not None:
      places = np.minimum(np.arange(-(-count // self.mesh.size) * self.mesh.size), count - 1)
      images = np.asarray(images)[places]
      place = NamedSharding(self.mesh, P(self.mesh.axis_names))
    images = jax.device_put(images, place)
    (found,) = [self.model(images)] if norm else self.model.features(images, 1, norm=False)
    tokens = found["patches"]
    tokens = jnp.asarray(tokens, jnp.float32).reshape(len(images), rows, columns, -1)
    # On one device again: what tasks make of a few patches is not worth a program for many.
    return tokens if self.mesh is None else jax.device_put(tokens, jax.local_devices()[0])[:count]

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh | None:
    """The devices that the model is on; None if it is on one."""
    sharding = jax.tree.leaves(nnx.state(self.model))[0].sharding
    return (sharding.mesh if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1
            else None)


def whole(side: float, patch: int) -> int:
  """The next whole number of patches, up."""
  return math.ceil(side / patch) * patch


def mark(path: str | os.PathLike) -> tuple[int, int]:
  """What tells whether a file has changed: bytes and nanoseconds; (-1, -1) if it is not there."""
  return path.mark() if isinstance(path, Stored) else file_mark(path)


def marks(paths: Sequence[str | os.PathLike]) -> list[tuple[int, int]]:
  """The `mark` of each of many files, which may be far away."""
  parts = [paths[i : i + 256] for i in range(0, len(paths), 256)]
  with ThreadPoolExecutor() as threads:
    found = threads.map(lambda part: [mark(path) for path in part], parts)
    return list(itertools.chain.from_iterable(found))
