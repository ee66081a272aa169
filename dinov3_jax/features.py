r"""Writes the features of images into one file.

  python -m dinov3_jax.features IMAGES... --weights W --out FILE

IMAGES are files, folders (with what lies below them), quoted globs, and other sources: tars, zips,
parquet, ArrayRecord, lists, buckets, tfds:NAME (docs/data.md). W is whatever
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
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from dinov3_jax import arguments, console, signals
from dinov3_jax.callable_module import make_callable
from dinov3_jax.main import fail

if TYPE_CHECKING:  # slow to import
  import numpy as np
  from PIL import Image

if __name__ != "__main__":
  make_callable(__name__, __name__, "features")

log = logging.getLogger(__name__)


def __getattr__(name):
  if name != "read":
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from dinov3_jax.data.rows import read  # when it is asked for: NumPy is slow to import
  return read


def find_images(arguments: Iterable[str]) -> list[str]:
  """The paths that files, folders and globs mean: each once, folders and globs sorted.

  A file that is named itself counts whatever its suffix. `~` is the home folder. What names a
  source of another kind (see `is_spec`), such as a tar, stands for all of its images.

  Raises:
    ValueError: an argument that leads to no image.
    OSError: a folder that cannot be read.
  """
  from dinov3_jax.data.sources import is_spec, open_source
  from dinov3_jax.data.stored import Stored
  from dinov3_jax.data.walk import SUFFIXES, images_below, printable
  found = {}
  for argument in map(os.path.expanduser, arguments):
    if is_spec(argument):
      found |= dict.fromkeys(Stored.several(argument, open_source(argument, "all")))
      continue
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


def features(images: "str | os.PathLike | Sequence[str | os.PathLike | np.ndarray | Image.Image]",
             weights: str | os.PathLike, *, model: str | None = None, tokens: str = "cls",
             size: int | tuple[int, int] | None = None, out: str | os.PathLike | None = None,
             batch_size: int = 32, dtype: str | None = None, store: str = "float32",
             progress: bool = False) -> "tuple[dict[str, np.ndarray], list[str]]":
  """The features of images, computed on all devices there are.

  Args:
    images: a file, a folder with all that lies below it, or a glob; several of these; or pictures
      that are in memory, uint8 [H, W, 3] or Pillow's.
    weights: as for `dinov3_jax.load`, or "random" for an untrained network.
    model: which one it is, where the weights do not say so.
    tokens: "cls", "patches", or "all", which are these and the storage tokens.
    size: of the images, one side or (height, width) in pixels; None: what the weights were trained
      with, if they say so, else 224.
    out: a new .safetensors or .npy file for them; a call that was interrupted goes on from there.
      Not for pictures in memory.
    batch_size: images at once, on all devices together.
    dtype: of the computation, "float32" or "bfloat16"; None: the latter on accelerators.
    store: the dtype of the features, "float32" or "float16".
    progress: show a bar on the standard error stream; of files alone.

  Returns:
    `cls` [N, D], `storage` [N, R, D] and `patches` [N, h, w, D], whichever was asked for; and the
    names of the images, which for pictures in memory are their places, "0" and so on. A damaged
    file is left out, and the log says so.

  Raises:
    ValueError: no images, an `out` that cannot be, and what `dinov3_jax.load` raises.
    OSError: files that cannot be read or written.
  """
  from dinov3_jax.data.rows import read
  from dinov3_jax.evals.backbone import open_on_all_devices
  from dinov3_jax.evals.extraction import of_pictures
  images = [images] if isinstance(images, str | os.PathLike) else list(images)
  if images and not isinstance(images[0], str | os.PathLike):
    if out is not None:
      raise ValueError("out is for files: the features of pictures in memory are only returned")
    arrays = of_pictures(images, *open_on_all_devices(weights, model, size, dtype), tokens=tokens,
                         batch_size=batch_size, dtype=store)
    return arrays, [str(i) for i in range(len(images))]
  with tempfile.TemporaryDirectory() as folder:
    file = os.path.expanduser(out or os.path.join(folder, "features.safetensors"))
    damaged = write(images, weights, file, model=model, tokens=tokens, size=size, dtype=dtype,
                    batch_size=batch_size, store=store, progress=progress)
    for name, reason in damaged.items():
      log.warning("left out: %s: %s", name, reason)
    return read(file)


def write(images: Iterable[str | os.PathLike], weights: str | os.PathLike, out: str | os.PathLike,
          *, model: str | None, tokens: str, size: int | tuple[int, int] | None,
          dtype: str | None, batch_size: int, store: str, progress: bool,
          stop: Callable[[], object] = lambda: False) -> dict[str, str]:
  """Writes the features of files; arguments as of `features`, and `stop` as of `extract`.

  Returns:
    Why, by name, of each image that is left out.
  """
  from dinov3_jax.evals.backbone import open_on_all_devices
  from dinov3_jax.evals.extraction import check_out, extract
  if batch_size < 1:
    raise ValueError("--batch-size must be at least 1")
  out = check_out(out, tokens)
  found = find_images([os.fspath(image) for image in images])
  network, prepare = open_on_all_devices(weights, model, size, dtype)
  return extract(found, out, network, prepare, tokens=tokens, progress=progress,
                 batch_size=batch_size, dtype=store, stop=stop)


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

  from dinov3_jax.data.rows import read
  from dinov3_jax.data.walk import printable
  from dinov3_jax.evals.extraction import Stopped
  from dinov3_jax.train import compiler

  try:
    with signals.Noted(line=None) as stop:
      damaged = write(args.images, args.weights, args.out, model=args.model, tokens=args.tokens,
                      size=args.size, dtype=args.dtype, batch_size=args.batch_size,
                      store=args.store, progress=True, stop=lambda: stop.number)
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
  arrays, names = read(args.out)
  shapes = ", ".join(f"{key} {list(x.shape)}" for key, x in arrays.items())
  print(f"{printable(args.out)}: {shapes} of {len(names)} images")
  return 0


if __name__ == "__main__":
  sys.exit(main())
