"""From the name of a source to the source."""

import collections
import importlib
import os
import re
from collections.abc import Callable

from dinov3_jax.data.decode import Decoder, decode
from dinov3_jax.data.sources import places
from dinov3_jax.data.sources.base import Source
from dinov3_jax.data.sources.folder import FolderSource
from dinov3_jax.data.sources.openmoji import OpenMoji
from dinov3_jax.data.sources.splits import SPLITS
from dinov3_jax.data.sources.tfds import TfdsSource
from dinov3_jax.data.walk import SUFFIXES, printable

# By kind: its files, and the module and function that open them, imported when they are needed.
SHARDS = {
  "tar": (r"\.tar(\.gz|\.bz2|\.xz|\.zst)?$|\.tgz$", "tar", "open_tars"),
  "zip": (r"\.zip$", "zip", "open_zips"),
  "parquet": (r"\.parquet$", "parquet", "open_parquet"),
  "array_record": (r"\.array_?record(-\d+-of-\d+)?$", "array_record", "open_array_records"),
}
MIX = "mix.json"


def open_source(spec: str | os.PathLike, split: str, decoder: Decoder = decode,
                cache_gb: float = 0.0) -> Source:
  """Opens a source of images.

  Args:
    spec: one of
      the path of a folder of images (see `FolderSource`), or a prefix of a bucket with images;
      files by path or pattern (`*`, `?`, `{000..127}`), or a folder or prefix that has them: tars
        (`.tar`), zips, parquet, ArrayRecord; `tar:`, `zip:`, `parquet:` or `array_record:` before
        it says which kind is meant where a name does not;
      `manifest:LIST`, or `manifest:LIST::SPEC` for a list over another source (see
        `manifest.open_manifest`);
      `DIR/mix.json`: parts that are drawn with weights (see `mixture.Mixture`);
      `tfds:NAME` or `tfds:NAME:VERSION`;
      `openmoji`, or `openmoji:base` without variants in skin tones.
      Paths may be `s3://`, `gs://`, `hf://` (`hf://datasets/ORG/NAME`) or any URL of fsspec.
    split: train, val, test, or all.
    decoder: that reads the images; OpenMoji's drawings need none.
    cache_gb: of disk, for what is read from buckets; see `ranges.Ranges`.

  Raises:
    ValueError: an unknown split, or a source that is not there, has no image, or cannot be read.
  """
  if split not in (*SPLITS, "all"):
    raise ValueError(f"unknown split {split!r}; take one of {', '.join(SPLITS)}, all")
  spec = os.fspath(spec)
  if spec in ("openmoji", "openmoji:base"):
    return OpenMoji(split, base_only=spec.endswith(":base"))
  if spec.startswith("tfds:"):
    return TfdsSource(spec.removeprefix("tfds:"), split, decoder)
  if spec.startswith("manifest:"):
    from dinov3_jax.data.sources.manifest import open_manifest
    path, _, below = spec.removeprefix("manifest:").partition("::")
    over = (lambda: open_source(below, "all", decoder, cache_gb)) if below else None
    return open_manifest(spec, os.path.expanduser(path), split, decoder, cache_gb, over)
  if os.path.basename(spec) == MIX:
    from dinov3_jax.data.sources.mixture import open_mixture
    return open_mixture(spec, split, decoder, cache_gb)
  kind, path = kind_of(spec)
  if kind is not None:
    return _opener(kind)(spec, _files(kind, path), split, decoder, cache_gb)
  if places.is_remote(spec):
    from dinov3_jax.data.sources.whole_files import open_bucket_folder
    return open_bucket_folder(spec, spec, split, decoder, cache_gb)
  return FolderSource(spec, split, decoder)


def kind_of(spec: str) -> tuple[str | None, str]:
  """Of which kind of `SHARDS` the files of a spec are, None where it means something else, and the
  spec without the kind before it."""
  kind, _, path = spec.partition(":")
  return (kind, path) if kind in SHARDS else (_kind(spec), spec)


def is_spec(text: str) -> bool:
  """Whether a text names a source that is no folder, file or glob of images."""
  return bool(re.match(r"(openmoji(:base)?$|tfds:|manifest:)", text)) or (
    text.partition(":")[0] in SHARDS or os.path.basename(text) == MIX or places.is_remote(text)
    or _kind(os.path.expanduser(text)) is not None)


def _opener(kind: str) -> Callable[..., Source]:
  _, module, function = SHARDS[kind]
  return getattr(importlib.import_module(f"dinov3_jax.data.sources.{module}"), function)


def _kind_of_file(path: str) -> str | None:
  return next((kind for kind, (pattern, *_) in SHARDS.items()
               if re.search(pattern, path.lower())), None)


def _kind(spec: str) -> str | None:
  """Of which kind the files of a spec are; None where it means images on their own."""
  if not places.is_remote(spec) and os.path.isdir(os.path.expanduser(spec)):
    return _kind_of_folder(os.path.expanduser(spec))
  kind = _kind_of_file(spec)
  if kind is None and places.is_remote(spec):
    return _kind_among(places.files_in(spec))
  return kind


def _kind_of_folder(folder: str) -> str | None:
  """A folder of this machine holds files of images where it has nothing else: with folders other
  than `data`, or images, beside them, they are what was downloaded, and unpacked there."""
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        if entry.is_dir() and entry.name != "data" and not entry.name.startswith("."):
          return None
    return _kind_among(places.files_in(folder))
  except (OSError, ValueError):  # it is named when it is read
    return None


def _kind_among(files: list[str]) -> str | None:
  kinds = {kind for kind in map(_kind_of_file, files) if kind}
  if len(kinds) != 1 or any(path.lower().endswith(SUFFIXES) for path in files):
    return None
  return kinds.pop()


def _files(kind: str, path: str) -> list[str]:
  """The files of a kind that a path or a pattern means."""
  expanded = os.path.expanduser(path)
  is_folder = not _kind_of_file(path) if places.is_remote(path) else os.path.isdir(expanded)
  if not is_folder:
    return places.expand(expanded)
  files = [file for file in places.files_in(expanded) if _kind_of_file(file) == kind]
  if not files:
    raise ValueError(f"there is no {kind} file in {printable(path)}")
  _check_whole(path, files)
  return files


def _check_whole(folder: str, files: list[str]):
  """Raises a ValueError if a folder lacks some of the files that their names count."""
  counted = collections.Counter()
  for file in files:
    found = re.fullmatch(r"(.+)-\d+-of-(\d+)\b(.*)", os.path.basename(file))
    if found:
      counted[found.groups()] += 1
  for (prefix, total, _), count in counted.items():
    if count != int(total):
      raise ValueError(f"{printable(folder)} has {count:,} of the {int(total):,} files "
                       f"{printable(prefix)}-*: finish to copy or to pack them, or name those that "
                       "are there by a pattern")
