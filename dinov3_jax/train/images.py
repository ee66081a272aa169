"""The images that a run's settings name."""

import dataclasses

from ml_collections import ConfigDict

from dinov3_jax.data.decode import Decoder
from dinov3_jax.data.sources import Source, open_source

DECODING = {field.name for field in dataclasses.fields(Decoder)}


def open_images(config: ConfigDict, split: str) -> Source:
  """Opens a split, train, val, test or all, of `config.data.source`, decoded as `config.data` says.

  What the settings of an older run do not name has the default of `Decoder`.

  Raises:
    ValueError: from `open_source`, and of settings that mean nothing to a `Decoder`.
  """
  settings = {key: config.data[key] for key in DECODING.intersection(config.data.keys())}
  return open_source(config.data.source, split, Decoder(**settings))
