"""Where images come from: a folder, TFDS, or the embedded OpenMoji set; see `Source`."""

import os

from dinov3_jax.data.decode import DamagedImage, Decoder, decode
from dinov3_jax.data.sources.base import Source
from dinov3_jax.data.sources.batches import eval_batches
from dinov3_jax.data.sources.folder import FolderSource
from dinov3_jax.data.sources.openmoji import OpenMoji
from dinov3_jax.data.sources.splits import SPLITS, hash_percent
from dinov3_jax.data.sources.tfds import TfdsSource
from dinov3_jax.data.walk import SUFFIXES

__all__ = ["SUFFIXES", "DamagedImage", "Decoder", "FolderSource", "OpenMoji", "Source",
           "TfdsSource", "decode", "eval_batches", "hash_percent", "open_source"]


def open_source(spec: str | os.PathLike, split: str, decoder: Decoder = decode) -> Source:
  """Opens a source of images.

  Args:
    spec: `openmoji`, `openmoji:base` (without variants in skin tones), `tfds:NAME` or
      `tfds:NAME:VERSION`, or the path of a folder (see `FolderSource`).
    split: train, val, test, or all.
    decoder: that reads the images; OpenMoji's drawings need none.

  Raises:
    ValueError: an unknown split, a missing or empty folder, a data set that is not there.
  """
  if split not in (*SPLITS, "all"):
    raise ValueError(f"unknown split {split!r}; take one of {', '.join(SPLITS)}, all")
  spec = os.fspath(spec)
  if spec in ("openmoji", "openmoji:base"):
    return OpenMoji(split, base_only=spec.endswith(":base"))
  if spec.startswith("tfds:"):
    return TfdsSource(spec.removeprefix("tfds:"), split, decoder)
  return FolderSource(spec, split, decoder)
