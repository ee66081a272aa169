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

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once()

import contextlib
import glob
import logging
import os
import sys
from collections.abc import Iterable

from dinov3_jax import arguments, console, signals
from dinov3_jax.main import fail


def __getattr__(name):
  if name != "read":
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from dinov3_jax.data.rows import read  # when it is asked for: NumPy is slow to import
  return read


def find_images(arguments: Iterable[str]) -> list[str]:
  """The paths that files, folders and globs mean: each once, folders and globs sorted.

  A file that is named itself counts whatever its suffix. `~` is the home folder.

  Raises:
    ValueError: an argument that leads to no image.
    OSError: a folder that cannot be read.
  """
  from dinov3_jax.data.walk import SUFFIXES, images_below, printable
  found = {}
  for argument in map(os.path.expanduser, arguments):
    paths = ([argument] if os.path.lexists(argument) else
             sorted(glob.glob(argument, recursive=True)))
    images = []
    for path in paths:
      if os.path.isdir(path):
        base = os.path.join(os.path.normpath(path), "")
        images += sorted(name if base == "./" else base + name for name in images_below(path))
      elif path == argument or path.lower().endswith(SUFFIXES):
        images.append(path)
    if not images:
      raise ValueError(f"{printable(argument)} " + (
          f"has no image ({', '.join(SUFFIXES)})" if paths else "matches no file"))
    found |= dict.fromkeys(images)
  return list(found)


def parser() -> arguments.Parser:
  """The command line."""
  made = arguments.Parser("features", __doc__)
  made.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, globs")
  arguments.add_model(made)
  add = made.add_argument_group("what comes out").add_argument
  add("--out", metavar="FILE", required=True, type=os.path.expanduser,
      help="a new .safetensors or .npy file")
  add("--tokens", choices=["cls", "patches", "all"], default="cls",
      help="the class token (default), the patches, or these and the storage tokens")
  add("--store", choices=["float32", "float16"], default="float32", help="dtype of the file")
  add = made.add_argument_group("how images go in").add_argument
  add("--size", type=arguments.size, metavar="SIDE|HEIGHT,WIDTH",
      help="in pixels; by default what the weights were trained with, or 224")
  add("--batch-size", type=int, default=32, metavar="IMAGES", help="at once; 32 by default")
  return made


def main() -> int:
  args = parser().parse_intermixed_args()
  console.set_up(logging.WARNING)

  # Not before the command line is known to be right: it takes seconds.
  import jax
  from jax.sharding import AxisType

  from dinov3_jax.data.rows import read
  from dinov3_jax.data.walk import printable
  from dinov3_jax.evals.backbone import open_model
  from dinov3_jax.evals.extraction import Stopped, check_out, extract
  from dinov3_jax.train import compiler

  try:
    if args.batch_size < 1:
      raise ValueError("--batch-size must be at least 1")
    out = check_out(args.out, args.tokens)
    images = find_images(args.images)
    devices = jax.local_devices()
    mesh = None if len(devices) == 1 else jax.make_mesh(
        (len(devices), 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=devices)
    model, prepare = open_model(args.weights, args.model, args.size, args.dtype, mesh)
    with signals.Noted(line=None) as stop:
      damaged = extract(images, out, model, prepare, tokens=args.tokens, progress=True,
                        batch_size=args.batch_size, dtype=args.store, stop=lambda: stop.number)
  except Stopped:
    with contextlib.suppress(OSError):  # the terminal may be gone
      fail("interrupted; the same command goes on from here")
    return 128 + stop.number
  except (OSError, ValueError, ModuleNotFoundError) as error:
    return fail(error)
  except jax.errors.JaxRuntimeError as error:
    if not compiler.is_too_large(error):
      raise
    return fail(f"the memory of the device does not suffice ({compiler.reason(error)}): take a "
                "smaller --batch-size; what is done is saved")
  for name, reason in damaged.items():
    print(f"left out: {name}: {reason}", file=sys.stderr)
  arrays, names = read(out)
  shapes = ", ".join(f"{key} {list(x.shape)}" for key, x in arrays.items())
  print(f"{printable(out)}: {shapes} of {len(names)} images")
  return 0


if __name__ == "__main__":
  sys.exit(main())
