"""The images that a run's settings name."""

import dataclasses
import math

from ml_collections import ConfigDict

from dinov3_jax.data.crops import ASPECT
from dinov3_jax.data.decode import Decoder
from dinov3_jax.data.sources import Source, open_source
from dinov3_jax.data.sources.mixture import open_parts
from dinov3_jax.data.sources.parts import Part

DECODING = {field.name for field in dataclasses.fields(Decoder)} - {"least_side"}
PART = {"source", "split", "weight", "homogeneous"}  # settings of one of `data.sources`


def open_images(config: ConfigDict, split: str) -> Source:
  """Opens a split, train, val, test or all, of what `config.data` names, decoded as it says.

  With `data.sources`, that is a mixture of these; else it is `data.source`. What the settings of an
  older run do not name has the default of `Decoder`.

  Raises:
    ValueError: from `open_source` and `open_parts`, and of settings that mean nothing to a
      `Decoder`.
  """
  data, decoder = config.data, make_decoder(config, split)
  cache_gb = data.cache_gb if "cache_gb" in data else 0.0
  sources = data.sources if "sources" in data else {}
  if not sources.keys():
    return open_source(data.source, split, decoder, cache_gb)
  parts = []
  for name, part in sources.items():
    strange = set(part.keys()) - PART
    if strange or "source" not in part:
      raise ValueError(f"data.sources.{name} " + (
        f"has {min(strange)}, which is no setting of a source" if strange else "names no source")
        + f"; there are {', '.join(sorted(PART))}")
    parts.append(Part(name, **{"split": "train", **{key: part[key] for key in part.keys()}}))  # noqa: SIM118
  return open_parts(parts, split, decoder, cache_gb)


def make_decoder(config: ConfigDict, split: str) -> Decoder:
  """What reads the images of a split, as `config.data` says.

  Raises:
    ValueError: settings that mean nothing to it.
  """
  data = config.data
  settings = {key: data[key] for key in DECODING.intersection(data.keys())}
  if split == "train" and "scaled_decoding" in data and data.scaled_decoding:
    settings["least_side"] = least_side(config.crops)
  return Decoder(**settings)


def least_side(crops: ConfigDict) -> float:
  """The root of the pixels of an image, whatever its shape, of which no window is smaller than its
  crop: the smallest window has the least share of its area, in the flattest aspect."""
  sides = [(max(sizes), crops.global_scale[0]) for sizes in (crops.global_sizes, crops.gram_sizes)]
  sides.append((max(crops.local_sizes), crops.local_scale[0]))
  return max(side / math.sqrt(share * ASPECT[0]) for side, share in sides)
