"""Where images come from, by name; see `open_source` and `Source`."""

from dinov3_jax.data.decode import DamagedImage, Decoder, decode
from dinov3_jax.data.sources.base import Source
from dinov3_jax.data.sources.batches import eval_batches
from dinov3_jax.data.sources.folder import FolderSource
from dinov3_jax.data.sources.opening import is_spec, open_source
from dinov3_jax.data.sources.openmoji import OpenMoji
from dinov3_jax.data.sources.splits import SPLITS, hash_percent
from dinov3_jax.data.sources.tfds import TfdsSource
from dinov3_jax.data.walk import SUFFIXES

__all__ = ["SPLITS", "SUFFIXES", "DamagedImage", "Decoder", "FolderSource", "OpenMoji", "Source",
           "TfdsSource", "decode", "eval_batches", "hash_percent", "is_spec",
           "open_source"]
