"""Where images with captions come from: folders, tars, parquet, COCO, Flickr30k, OpenMoji."""

import os

from dinov3_jax.data.decode import Decoder, decode
from dinov3_jax.data.pairs.base import Pairs, pair
from dinov3_jax.data.pairs.coco import coco_pairs
from dinov3_jax.data.pairs.folder import folder_pairs
from dinov3_jax.data.pairs.parquet import parquet_pairs
from dinov3_jax.data.pairs.tar import tar_pairs
from dinov3_jax.data.sources.opening import is_spec, kind_of
from dinov3_jax.data.sources.openmoji import OpenMoji
from dinov3_jax.data.sources.splits import SPLITS
from dinov3_jax.data.walk import printable

OF_SHARDS = {"tar": tar_pairs, "parquet": parquet_pairs}

__all__ = ["Pairs", "open_pairs"]


def open_pairs(spec: str | os.PathLike, split: str, decoder: Decoder = decode) -> Pairs:
  """Opens images with captions.

  Args:
    spec: `openmoji` or `openmoji:base` (three captions: a drawing's name, that with its category,
      and the category), `coco:FOLDER` (see `coco_pairs`), tars or parquet files as `open_source`
      takes them (see `tar_pairs` and `parquet_pairs`), or the path of a folder (see
      `folder_pairs`).
    split: train, val, test, or all.
    decoder: that reads the images.

  Raises:
    ValueError: an unknown split, a source that is not there or has no captions.
    OSError: one that cannot be read.
  """
  if split not in (*SPLITS, "all"):
    raise ValueError(f"unknown split {split!r}; take one of {', '.join(SPLITS)}, all")
  spec = os.fspath(spec)
  if spec in ("openmoji", "openmoji:base"):
    images = OpenMoji(split, base_only=spec.endswith(":base"))
    return pair(images, [_of_emoji(name, label, images.classes)
                         for name, label in zip(images.names, images.labels)], f"{spec} ({split})")
  if spec.startswith("coco:"):
    return coco_pairs(spec.removeprefix("coco:"), split, decoder)
  kind, _ = kind_of(spec)
  if kind in OF_SHARDS:
    return OF_SHARDS[kind](spec, split, decoder)
  if kind is not None or is_spec(spec):
    raise ValueError(f"there are no captions in {printable(spec)} that can be read: wanted is a "
                     "folder, tars, parquet files, coco:FOLDER or openmoji")
  return folder_pairs(spec, split, decoder)


def _of_emoji(name: str, label: int, categories: list[str]) -> list[str]:
  if name.startswith("openmoji "):  # a drawing that is not in Unicode's list has but a code
    return []
  if label < 0:
    return [name]
  category = categories[label].lower()
  return [name, f"{name}, {category}", category]
