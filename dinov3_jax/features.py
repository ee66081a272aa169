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
import os
import pathlib
import sys
from collections.abc import Iterable

import jax
from jax.sharding import AxisType

from dinov3_jax.data.rows import read
from dinov3_jax.data.sources import SUFFIXES
from dinov3_jax.evals.backbone import open_model
from dinov3_jax.evals.extraction import TOKENS, check_out, extract
from dinov3_jax.main import fail


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
