"""From a crawl on many machines to a folder of images: decoded once, filtered, each kept once.

Ray Data (`pip install 'ray[data]'`) reads the files, wherever they are, and spreads them over a
cluster's CPUs. What comes through is written under the hash of its pixels, so that equal images
fall on one file without being sent anywhere, and a second run writes what is missing.
"""

import functools
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from dinov3_jax.data.decode import DamagedImage, decode
from dinov3_jax.data.walk import SUFFIXES

MIN_SIDE = 64  # pixels
MAX_ASPECT = 4.0  # longer side over shorter side


def examine(row: dict[str, Any], *, min_side: int = MIN_SIDE, max_aspect: float = MAX_ASPECT
            ) -> dict[str, Any]:
  """What a file is.

  Args:
    row: `bytes` of a file, and its `path`.
    min_side: shorter side that an image must have, pixels.
    max_aspect: longer over shorter side that it may have.

  Returns:
    `reason` why it is left out, "" where it is kept; `name` that its pixels give it.
  """
  try:
    image = decode(row["bytes"], row["path"])
  except DamagedImage:
    return dict(reason="damaged", name="")
  sides = sorted(image.shape[:2])
  if sides[0] < min_side:
    return dict(reason="small", name="")
  if sides[1] > max_aspect * sides[0]:
    return dict(reason="long", name="")
  suffix = pathlib.PurePath(row["path"]).suffix.lower()
  return dict(reason="", name=pixel_hash(image) + (suffix if suffix in SUFFIXES else ".jpg"))


def pixel_hash(image: np.ndarray) -> str:
  """The first 128 bits of the SHA-256 of an image's shape and pixels, in hexadecimal."""
  digest = hashlib.sha256(repr(image.shape).encode())
  digest.update(np.ascontiguousarray(image))
  return digest.hexdigest()[:32]


def keep(row: dict[str, Any], *, out: str, **limits) -> dict[str, Any]:
  """Writes a file below `out` if `examine` keeps it; returns why, or why not."""
  found = examine(row, **limits)
  if found["reason"]:
    return dict(reason=found["reason"])
  file = pathlib.Path(out, found["name"][:2], found["name"])
  # One image may have come in several encodings: the first one is kept. Two that are written at the
  # same moment may both be; deduplication finds them.
  if any(file.with_suffix(suffix).exists() for suffix in SUFFIXES):
    return dict(reason="equal")
  file.parent.mkdir(parents=True, exist_ok=True)
  new = file.with_name(f".{file.name}.{os.getpid()}")
  new.write_bytes(row["bytes"])
  new.replace(file)
  return dict(reason="kept")


def front(files: str | list[str], out: str | os.PathLike, *, min_side: int = MIN_SIDE,
          max_aspect: float = MAX_ASPECT) -> dict[str, int]:
  """Fills a folder with the images of a crawl that are worth a place.

  Args:
    files: paths, folders or buckets that `ray.data.read_binary_files` reads.
    out: a folder that all machines see.
    min_side, max_aspect: see `examine`.

  Returns:
    How many files were "kept", "equal" to one that is there, "damaged", "small" or "long". Those
    that an earlier run has kept are "equal" now.

  Raises:
    ValueError: Ray is not installed, or there are no files.
  """
  try:
    import ray
  except ImportError as error:
    raise ValueError("filtering a crawl needs Ray Data: pip install 'ray[data]'") from error
  try:
    data = ray.data.read_binary_files(files, include_paths=True)
  except FileNotFoundError as error:
    raise ValueError(f"there are no files at {files}") from error
  write = functools.partial(keep, out=os.fspath(out), min_side=min_side, max_aspect=max_aspect)
  counts = data.map(write).groupby("reason").count().take_all()
  return {row["reason"]: int(row["count()"]) for row in counts}
