"""The features of images, into one file: batches, the devices, and going on after a stop."""

import contextlib
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TextIO

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

from dinov3_jax.data.lock import FolderLock
from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.data.reach import UNREACHABLE, VANISHED
from dinov3_jax.data.rows import HEADER_BYTES, Rows, is_ours, names_of
from dinov3_jax.data.sources import DamagedImage
from dinov3_jax.data.sources.marks import file_mark
from dinov3_jax.data.stored import Stored
from dinov3_jax.data.walk import printable
from dinov3_jax.evals.backbone import patch_side
from dinov3_jax.models.partition import DATA_AXES

TOKENS = dict(cls=("cls",), patches=("patches",), all=("cls", "storage", "patches"))
FORMATS = (".safetensors", ".npy")


class Stopped(Exception):
  """The extraction was asked to stop; the same call goes on from there."""


def extract(images: Sequence[str], out: str | os.PathLike, model: nnx.Module, prepare: Preprocess,
            *, tokens: str = "cls", batch_size: int = 32, dtype: str = "float32",
            progress: bool = False, stop: Callable[[], object] = lambda: False) -> dict[str, str]:
  """Writes the features of images into a file, or goes on where an earlier call was stopped.

  Going on, it reads images again that were damaged, or that have changed on the disk since.

  Args:
    images: paths, or images of sources (`Stored`).
    out: a new file, .safetensors or .npy.
    model, prepare: as from `open_model`. The work is shared by the devices that the model is on.
    tokens: "cls", "patches" (as a grid), or "all", which takes a .safetensors.
    batch_size: images at once, on all devices together.
    dtype: of the file, "float32" or "float16".
    progress: show a bar on the standard error stream.
    stop: asked after every batch whether to save and stop.

  Returns:
    Why, by name, of each damaged image, which has no row. Names are written as `printable` does.

  Raises:
    ValueError: an `out` that cannot be, or whose beginning is another job's; no image can be read;
      two paths that are written alike.
    OSError: another process has begun this file; the disk is full or broken; or the images have
      vanished: `VANISHED` in a row. The same call goes on once that is mended.
    Stopped: `stop` said so.
  """
  out = check_out(out, tokens)
  if not images:
    raise ValueError("there are no images to take features of")
  names = _names(images)
  if out.suffix == ".safetensors" and len(json.dumps(json.dumps(names))) > 0.9 * HEADER_BYTES:
    raise ValueError(f"{len(images):,} names do not fit in a .safetensors file: take .npy")
  job = dict(tokens=tokens, dtype=dtype, preprocessing=str(prepare), model=fingerprint(model),
             images=_digest(os.fsencode(image) for image in images))
  grid = [side // patch_side(model) for side in np.broadcast_to(prepare.size, 2).tolist()]
  place, shards = _layout(model)
  batch_size = -(-min(batch_size, len(images)) // shards) * shards

  def compute(array, *rest):
    result = model(jax.device_put(array, place))
    return {key: result[key] for key in TOKENS[tokens]}, *rest

  folder, vanished = partial_of(out), 0
  with contextlib.ExitStack() as stack:
    stack.callback(_remove_if_empty, folder)
    stack.enter_context(FolderLock(folder, "features"))
    check_out(out, tokens)  # another process may have finished it
    rows = stack.enter_context(Rows(folder, out, job))
    if rows.finished:
      return {names[i]: reason for i, reason in sorted(rows.damaged.items())}
    todo = _left(images, rows)
    shown = stack.enter_context(bar(progress))
    shown.console.show_cursor(True)  # a killed process must not leave a terminal without
    task = shown.add_task("", total=len(images), completed=len(images) - len(todo))
    batches = _batches(images, todo, prepare, batch_size)
    for arrays, items, marks, damaged in _one_ahead(compute(*batch) for batch in batches):
      for item in items:
        vanished = vanished + 1 if item in damaged and damaged[item].vanished else 0
        if vanished == VANISHED:
          raise OSError(f"{names[item]} and the {VANISHED - 1} images before it cannot be reached "
                        f"({damaged[item]}): see that they are there, and the same command goes on "
                        "from here")
      good = [i for i, item in enumerate(items) if item not in damaged]
      arrays = {key: np.asarray(x)[good].astype(dtype) for key, x in arrays.items()}
      if "patches" in arrays:
        arrays["patches"] = arrays["patches"].reshape(len(good), *grid, -1)
      rows.append(arrays, items, marks, {item: str(why) for item, why in damaged.items()})
      shown.advance(task, len(items))
      if stop():
        raise Stopped
    if len(rows.damaged) == len(images):
      first = min(rows.damaged)
      raise ValueError(f"none of the {len(images)} images can be read; the first is "
                       f"{names[first]}: {rows.damaged[first]}")
    rows.finish(names)
  return {names[i]: reason for i, reason in sorted(rows.damaged.items())}


def of_pictures(pictures: Sequence[np.ndarray | Image.Image], model: nnx.Module,
                prepare: Preprocess, *, tokens: str = "cls", batch_size: int = 32,
                dtype: str = "float32") -> dict[str, np.ndarray]:
  """The features of pictures that are in memory: those that `extract` writes for their files.

  Args:
    pictures: uint8 [H, W, 3], each of any size, or Pillow's.
    model, prepare, tokens, batch_size, dtype: as for `extract`.

  Raises:
    ValueError: there are none, or one that `prepare` refuses.
  """
  if not len(pictures):
    raise ValueError("there are no images to take features of")
  if batch_size < 1:
    raise ValueError("batch_size must be at least 1")
  grid = [side // patch_side(model) for side in np.broadcast_to(prepare.size, 2).tolist()]
  place, shards = _layout(model)
  batch_size = -(-min(batch_size, len(pictures)) // shards) * shards

  def compute(chosen):
    batch = np.zeros((batch_size, *np.broadcast_to(prepare.size, 2), 3), np.float32)
    for i, picture in enumerate(chosen):
      batch[i] = prepare(picture)
    found = model(jax.device_put(batch, place))
    return {key: found[key] for key in TOKENS[tokens]}, len(chosen)

  parts = [
    {key: np.asarray(x)[:count].astype(dtype) for key, x in arrays.items()}
    for arrays, count in _one_ahead(compute(pictures[i:i + batch_size])
                                    for i in range(0, len(pictures), batch_size))]
  arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
  if "patches" in arrays:
    arrays["patches"] = arrays["patches"].reshape(len(pictures), *grid, -1)
  return arrays


def partial_of(out: pathlib.Path) -> pathlib.Path:
  """The folder that holds the beginning of a file."""
  return out.with_name(out.name + ".partial")


def _remove_if_empty(folder: pathlib.Path):
  with contextlib.suppress(OSError):
    folder.rmdir()


def _names(images: Sequence[str]) -> list[str]:
  """Paths as they are written in files; no two different ones alike."""
  names = [printable(image) for image in images]
  if len(set(names)) < len(set(images)):
    seen = {}
    for name, image in zip(names, images):
      if seen.setdefault(name, image) != image:
        raise ValueError(f"two images are both written {name}, as one of them is not valid UTF-8: "
                         "rename one")
  return names


def _digest(parts: Iterable[bytes | np.ndarray]) -> str:
  digest = hashlib.sha256()
  for part in parts:
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)
  return digest.hexdigest()


def _left(images: Sequence[str], rows: Rows) -> list[int]:
  """The images without a row, or with one from before they changed; in order."""
  known = rows.marks()
  again = [i for i, mark in enumerate(map(tuple, known.tolist()))
           if i in rows.damaged or mark != _mark(images[i])]
  return [*again, *range(rows.done, len(images))]


def _mark(path: str) -> tuple[int, int]:
  return path.mark() if isinstance(path, Stored) else file_mark(path)


def _layout(model: nnx.Module) -> tuple[jax.sharding.Sharding | None, int]:
  """How a batch lies beside the model, and in how many parts."""
  sharding = jax.tree.leaves(nnx.state(model))[0].sharding
  if not isinstance(sharding, NamedSharding):
    return None, 1
  mesh = sharding.mesh
  return NamedSharding(mesh, P(DATA_AXES)), math.prod(mesh.shape[axis] for axis in DATA_AXES)


def fingerprint(model: nnx.Module) -> str:
  """Tells models apart: SHA-256 of their structure and of every bit of their parameters.

  A ViT-L in float32 takes 1.2 s of one core (1.2 GB). Arrays come to the host one by one.
  """
  graph, state = nnx.split(model)

  def parts():
    # Functions are written with their addresses, and the order within a mapping is a matter of
    # chance.
    lines = re.sub(r" at 0x[0-9a-f]+", "", str(graph)).split("\n")
    yield "\n".join(sorted(line.strip(", ") for line in lines)).encode()
    for path, x in jax.tree_util.tree_leaves_with_path(state):
      yield f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode()
      yield np.ascontiguousarray(x).reshape(-1).view(np.uint8)

  return _digest(parts())


class _Damage(str):
  """Why an image has no row; `vanished` if not it, but the way to it is at fault."""

  vanished = False


def _batches(images: Sequence[str], todo: Sequence[int], prepare: Preprocess, batch_size: int
             ) -> Iterator[tuple[np.ndarray, list[int], list[tuple[int, int]], dict[int, _Damage]]]:
  """Prepared images [batch_size, h, w, 3] (zeros where there is none), which of all images they
  are, their marks, and why of the damaged ones."""
  def read(path):
    mark = _mark(path)  # before: a change while it is read must be noticed later
    try:
      return mark, prepare(path)
    except DamagedImage as error:
      # On one line, and as text that every file can hold.
      reason = error.reason.encode("utf-8", "backslashreplace").decode()
      damage = _Damage(" ".join(reason.split()))
      damage.vanished = getattr(error.__cause__, "errno", None) in UNREACHABLE
      return mark, damage

  with ThreadPoolExecutor() as threads:
    groups = (list(todo[i:i + batch_size]) for i in range(0, len(todo), batch_size))
    reading = ((group, [threads.submit(read, images[i]) for i in group]) for group in groups)
    for group, futures in _one_ahead(reading):
      array = np.zeros((batch_size, *np.broadcast_to(prepare.size, 2), 3), np.float32)
      damaged, marks = {}, []
      for i, future in enumerate(futures):
        mark, result = future.result()
        marks.append(mark)
        if isinstance(result, _Damage):
          damaged[group[i]] = result
        else:
          array[i] = result
      yield array, group, marks, damaged


def _one_ahead(items: Iterable) -> Iterator:
  """The same items, each when the next one has been begun."""
  for item, _ in itertools.pairwise(itertools.chain(items, [None])):
    yield item


def bar(show: bool, what: str = "images") -> Progress:
  """A progress bar on the standard error stream, which may end before the work does."""
  console = Console(file=_Terminal(sys.stderr))
  return Progress(BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeElapsedColumn(),
                  TimeRemainingColumn(), console=console, disable=not show)


class _Terminal:
  """A stream that may end, as that of a closed terminal does, without ending the work."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    with contextlib.suppress(OSError):
      self._stream.write(text)
    return len(text)

  def flush(self):
    with contextlib.suppress(OSError):
      self._stream.flush()


def check_out(out: str | os.PathLike, tokens: str) -> pathlib.Path:
  """The path of a file that can be written, or a ValueError."""
  out = pathlib.Path(out)
  if out.suffix not in FORMATS:
    raise ValueError(f"{out} must end in {' or '.join(FORMATS)}")
  if out.suffix == ".npy" and tokens == "all":
    raise ValueError("a .npy file holds one array: take .safetensors for all tokens")
  for path in [out, names_of(out)] if out.suffix == ".npy" else [out]:
    if os.path.lexists(path) and not is_ours(path, partial_of(out)):
      raise ValueError(f"{path} is there already: delete it, or choose another --out")
  if not os.access(out.parent, os.W_OK):
    raise ValueError(f"{out} cannot be written: no folder {out.parent}, or no right to change it")
  return out
