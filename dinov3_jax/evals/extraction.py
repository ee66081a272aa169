"""The features of images, into one file: batches, the devices, and going on after a stop."""

import hashlib
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.data.rows import Rows
from dinov3_jax.data.sources import DamagedImage
from dinov3_jax.evals.backbone import patch_side
from dinov3_jax.models.partition import DATA_AXES

TOKENS = dict(cls=("cls",), patches=("patches",), all=("cls", "storage", "patches"))
FORMATS = (".safetensors", ".npy")


def extract(images: Sequence[str], out: str | os.PathLike, model: nnx.Module, prepare: Preprocess,
            *, tokens: str = "cls", batch_size: int = 32, dtype: str = "float32",
            progress: bool = False) -> dict[str, str]:
  """Writes the features of images into a file, or goes on where an earlier call was stopped.

  Args:
    images: paths.
    out: a new file, .safetensors or .npy.
    model, prepare: as from `open_model`. The work is shared by the devices that the model is on.
    tokens: "cls", "patches" (as a grid), or "all", which takes a .safetensors.
    batch_size: images at once, on all devices together.
    dtype: of the file, "float32" or "float16".
    progress: show a bar on the standard error stream.

  Returns:
    Why, by name, of each damaged image, which has no row.

  Raises:
    ValueError: an `out` that cannot be, or whose beginning is another job's; no image can be read.
  """
  out = check_out(out, tokens)
  if out.suffix == ".safetensors" and len(json.dumps(images)) > 9e7:
    raise ValueError(f"{len(images):,} names do not fit in a .safetensors file: take .npy")
  job = dict(tokens=tokens, dtype=dtype, preprocessing=str(prepare), model=_fingerprint(model),
             images=hashlib.sha256("\0".join(images).encode()).hexdigest())
  grid = [side // patch_side(model) for side in np.broadcast_to(prepare.size, 2).tolist()]
  place, shards = _layout(model)
  batch_size = -(-min(batch_size, len(images)) // shards) * shards

  def compute(files, array, damaged):
    result = model(jax.device_put(array, place))
    return files, {key: result[key] for key in TOKENS[tokens]}, damaged

  with Rows(out.with_name(out.name + ".partial"), job) as rows, _bar(progress) as bar:
    task = bar.add_task("", total=len(images), completed=rows.done)
    batches = _batches(images[rows.done:], prepare, batch_size)
    for files, arrays, damaged in _one_ahead(compute(*batch) for batch in batches):
      good = [i for i, file in enumerate(files) if file not in damaged]
      arrays = {key: np.asarray(x)[good].astype(dtype) for key, x in arrays.items()}
      if "patches" in arrays:
        arrays["patches"] = arrays["patches"].reshape(len(good), *grid, -1)
      rows.append(arrays, len(files), damaged)
      bar.advance(task, len(files))
    if len(rows.damaged) == len(images):
      raise ValueError(f"none of the {len(images)} images can be read")
    rows.finish(out, [image for image in images if image not in rows.damaged])
  return rows.damaged


def _layout(model: nnx.Module) -> tuple[jax.sharding.Sharding | None, int]:
  """How a batch lies beside the model, and in how many parts."""
  sharding = jax.tree.leaves(nnx.state(model))[0].sharding
  if not isinstance(sharding, NamedSharding):
    return None, 1
  mesh = sharding.mesh
  return NamedSharding(mesh, P(DATA_AXES)), math.prod(mesh.shape[axis] for axis in DATA_AXES)


def _fingerprint(model: nnx.Module) -> str:
  """Tells models apart: what they compute in, and the mean size of their parameters."""
  leaves = jax.tree.leaves(nnx.state(model))
  means = jax.jit(lambda leaves: sum(jnp.abs(x).mean(dtype=jnp.float32) for x in leaves))(leaves)
  return f"{leaves[0].dtype} {float(means):.6e}"


def _batches(images: Sequence[str], prepare: Preprocess, batch_size: int
             ) -> Iterator[tuple[Sequence[str], np.ndarray, dict[str, str]]]:
  """Paths, prepared images [batch_size, h, w, 3] (zeros where there is none), and the damaged."""
  def read(path):
    try:
      return prepare(path)
    except DamagedImage as error:
      return error.reason

  with ThreadPoolExecutor() as threads:
    groups = (images[i:i + batch_size] for i in range(0, len(images), batch_size))
    reading = ((group, [threads.submit(read, path) for path in group]) for group in groups)
    for group, futures in _one_ahead(reading):
      array = np.zeros((batch_size, *np.broadcast_to(prepare.size, 2), 3), np.float32)
      damaged = {}
      for i, future in enumerate(futures):
        result = future.result()
        if isinstance(result, str):
          damaged[group[i]] = result
        else:
          array[i] = result
      yield group, array, damaged


def _one_ahead(items: Iterable) -> Iterator:
  """The same items, each when the next one has been begun."""
  for item, _ in itertools.pairwise(itertools.chain(items, [None])):
    yield item


def _bar(show: bool) -> Progress:
  return Progress(BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeElapsedColumn(),
                  TimeRemainingColumn(), console=Console(stderr=True), disable=not show)


def check_out(out: str | os.PathLike, tokens: str) -> pathlib.Path:
  """The path of a file that can be written, or a ValueError."""
  out = pathlib.Path(out)
  if out.suffix not in FORMATS:
    raise ValueError(f"{out} must end in {' or '.join(FORMATS)}")
  if out.suffix == ".npy" and tokens == "all":
    raise ValueError("a .npy file holds one array: take .safetensors for all tokens")
  if out.exists():
    raise ValueError(f"{out} is there already: delete it, or choose another --out")
  if not os.access(out.parent, os.W_OK):
    raise ValueError(f"{out} cannot be written: no folder {out.parent}, or no right to change it")
  return out
