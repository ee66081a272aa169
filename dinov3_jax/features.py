r"""Writes the features of images into one file.

  python -m dinov3_jax.features IMAGES... --weights W --out FILE

IMAGES are files, folders (with what lies below them) and quoted globs. W is whatever
`dinov3_jax.load` takes, or `random` for an untrained network. FILE ends in
  .safetensors  arrays `cls` [N, D], `storage` [N, R, D] and `patches` [N, h, w, D], whichever
                --tokens asks for, the names of the images in its metadata
  .npy          one array; the names stand beside it, in a .json file
and `dinov3_jax.features.read` reads either. Until it is complete, FILE.partial holds what there is,
and the same command goes on from there. Damaged images are left out and listed.
"""

import argparse
import glob
import hashlib
import itertools
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
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

from dinov3_jax.data.preprocess import Preprocess, preprocess
from dinov3_jax.data.rows import Rows, read
from dinov3_jax.data.sources import SUFFIXES, DamagedImage
from dinov3_jax.main import fail
from dinov3_jax.models.partition import DATA_AXES
from dinov3_jax.models.variants import channels, variant
from dinov3_jax.weights import loading

TOKENS = dict(cls=("cls",), patches=("patches",), all=("cls", "storage", "patches"))
FORMATS = (".safetensors", ".npy")


def find_images(arguments: Iterable[str]) -> list[str]:
  """The paths that files, folders and globs mean: each once, folders and globs sorted.

  A file that is named itself counts whatever its suffix.

  Raises:
    ValueError: an argument that leads to no image.
  """
  found = {}
  for argument in arguments:
    paths = [argument] if os.path.exists(argument) else sorted(glob.glob(argument, recursive=True))
    images = []
    for path in paths:
      if os.path.isdir(path):
        images += sorted(file.as_posix() for file in pathlib.Path(path).rglob("[!.]*")
                         if file.suffix.lower() in SUFFIXES and file.is_file())
      elif path == argument or path.lower().endswith(SUFFIXES):
        images.append(path)
    if not images:
      raise ValueError(f"{argument} " + (f"has no image ({', '.join(SUFFIXES)})" if paths else
                                         "matches no file"))
    found |= dict.fromkeys(images)
  return list(found)


def open_model(weights: str, name: str | None = None, size: int | tuple[int, int] | None = None,
               dtype: str | None = None, mesh: jax.sharding.Mesh | None = None
               ) -> tuple[nnx.Module, Preprocess]:
  """A model, and what its images must go through.

  Args:
    weights: as for `dinov3_jax.load`, or "random".
    name: of the model, where the weights do not say.
    size: of the images, one side or (height, width) in pixels; None: what the weights were trained
      with, if they say so, else 224.
    dtype: "float32" or "bfloat16"; None: bfloat16 on accelerators, float32 on CPUs.
    mesh: as for `dinov3_jax.load`.

  Raises:
    ValueError: a size that is no whole number of patches, a model of other than RGB images, and
      what `dinov3_jax.load` raises.
  """
  dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
  if name is not None:
    variant(name)
  if weights == "random":
    if name is None:
      raise ValueError("random weights need a --model")
    model, prepare = loading.load(name, None, dtype, mesh), preprocess("", size or 224)
  else:
    path = loading.locate(name, weights)
    prepare = preprocess(path, size)
    model = loading.load(name, path, dtype, mesh)
    if channels(model) != 3:
      raise ValueError(f"{weights} is a model of images with {channels(model)} channels, not of "
                       "RGB: call `dinov3_jax.load` and prepare its images yourself")
  patch = patch_side(model)
  wrong = [side for side in np.ravel(prepare.size).tolist() if side % patch]
  if wrong:
    near = sorted({max(wrong[0] // patch, 1) * patch, -(-wrong[0] // patch) * patch})
    raise ValueError(f"a size of {wrong[0]} is no whole number of the model's patches of {patch}: "
                     f"take {' or '.join(map(str, near))}")
  return model, prepare


def patch_side(model: nnx.Module) -> int:
  """Of a patch, in pixels; 32 for a ConvNeXt's last map."""
  return model.patch_size or 32


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


def add_model_flags(parser: argparse.ArgumentParser):
  """The flags of `open_model`."""
  add = parser.add_argument
  add("--weights", metavar="W", required=True, help="a run's folder, a file, a name; see above")
  add("--model", metavar="NAME", help="which model it is, where the weights do not say so")
  add("--dtype", choices=["float32", "bfloat16"],
      help="of the computation; by default bfloat16 on accelerators, float32 on CPUs")


def parse_size(text: str) -> int | tuple[int, int]:
  """224 or 480,640 (height, width)."""
  sides = tuple(int(side) if side.isdecimal() else 0 for side in text.split(","))
  if len(sides) > 2 or min(sides) < 1:
    raise argparse.ArgumentTypeError(f"a size is one number or HEIGHT,WIDTH, not {text}")
  return sides if len(sides) == 2 else sides[0]


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m dinov3_jax.features", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add("images", metavar="IMAGES", nargs="+", help="files, folders, globs")
  add_model_flags(parser)
  add("--out", metavar="FILE", required=True, help="a new .safetensors or .npy file")
  add("--tokens", choices=list(TOKENS), default="cls")
  add("--size", type=parse_size, metavar="SIDE|HEIGHT,WIDTH",
      help="in pixels; by default what the weights were trained with, or 224")
  add("--batch-size", type=int, default=32, metavar="IMAGES")
  add("--store", choices=["float32", "float16"], default="float32", help="dtype of the file")
  args = parser.parse_intermixed_args()
  try:
    if args.batch_size < 1:
      raise ValueError("--batch-size must be at least 1")
    out = check_out(args.out, args.tokens)
    images = find_images(args.images)
    devices = jax.local_devices()
    mesh = None if len(devices) == 1 else jax.make_mesh(
        (len(devices), 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=devices)
    model, prepare = open_model(args.weights, args.model, args.size, args.dtype, mesh)
    damaged = extract(images, out, model, prepare, tokens=args.tokens, batch_size=args.batch_size,
                      dtype=args.store, progress=True)
  except (OSError, ValueError, ModuleNotFoundError) as error:
    return fail(error)
  except KeyboardInterrupt:
    return fail("interrupted; the same command goes on from here", 130)
  for name, reason in damaged.items():
    print(f"left out: {name}: {reason}", file=sys.stderr)
  arrays, names = read(out)
  shapes = ", ".join(f"{key} {list(x.shape)}" for key, x in arrays.items())
  print(f"{out}: {shapes} of {len(names)} images")
  return 0


if __name__ == "__main__":
  sys.exit(main())
