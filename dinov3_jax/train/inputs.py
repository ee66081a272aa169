"""What a run reads: its images, and the batches made of them."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov3_jax.data import device_colors
from dinov3_jax.data.crops import MultiCrop
from dinov3_jax.data.pipeline import Pipeline, make_pipeline
from dinov3_jax.data.sources import Source
from dinov3_jax.models.variants import stride
from dinov3_jax.train import sharding
from dinov3_jax.train.images import open_images

log = logging.getLogger(__name__)

Batch = dict[str, jax.Array]
Data = TypeVar("Data")


def open_held_out(config: ConfigDict, open_split: Callable[[ConfigDict, str], Data] = open_images
                  ) -> Data | None:
  """What evaluations see; None, with a line that says why, without any.

  Args:
    config: of a run.
    open_split: opens a split of its data: by default images.
  """
  if not config.evals.every:
    return None
  try:
    return open_split(config, "val")
  except (ValueError, OSError) as error:
    log.info("no evaluation: %s", error)
    return None


def open_general(config: ConfigDict) -> tuple[Source, Source] | None:
  """The second source that evaluations see, its training and its held-out images; None without.

  Raises:
    ValueError, OSError: it cannot be opened; it was asked for, so that no run should start without.
  """
  if not config.evals.general:
    return None
  config = config.copy_and_resolve_references()
  config.data.source, config.data.sources = config.evals.general, ConfigDict()
  try:
    return open_images(config, "train"), open_images(config, "val")
  except (ValueError, OSError) as error:
    raise type(error)(f"evals.general={config.evals.general}: {error}") from error


def make_multi_crops(config: ConfigDict) -> list[MultiCrop]:
  """What cuts the crops of an image, for each resolution.

  Raises:
    ValueError: sizes or settings that do not fit together.
  """
  crops = config.crops
  shared = ("locals", "global_scale", "local_scale", "horizontal_flip", "color_strength",
            "share_color_jitter", "locals_from_globals", "gram_distortions")
  return [MultiCrop(*sizes, patch_size=stride(config.model), colors=config.data.colors,
                    resizer=config.data.resizer, **{key: crops[key] for key in shared})
          for sizes in zip(crops.global_sizes, crops.local_sizes, crops.gram_sizes)]


def open_pipeline(config: ConfigDict, source: Source, mesh: Mesh) -> Pipeline:
  """The stream of batches that the config describes, of them this process's share.

  Masks are made for each micro-batch of a data shard on its own.

  Raises:
    ValueError: sizes or counts that do not fit together.
  """
  crops, masks, parts = config.crops, config.masks, config.train.micro_batches
  shards = sharding.data_shards(mesh)
  sharding.check_parts(config.train.batch_size, shards, parts)
  if config.data.colors == "device" and jax.default_backend() == "cpu":
    log.warning("data.colors=device: the device is the CPU, which takes many times longer for it "
                "than OpenCV does; data.colors=host is faster here")
  local = [shard * parts + part for shard in sharding.local_shards(mesh) for part in range(parts)]
  return make_pipeline(
    source, make_multi_crops(config), crops.size_weights, config.train.batch_size,
    shards=shards * parts, local_shards=local, seed=config.seed, workers=config.data.workers,
    mask_probability=masks.probability, mask_ratio=masks.ratio,
    mask_circular_shift=masks.circular_shift, max_damaged=config.data.max_damaged)


def fetch(pipeline: Pipeline, mesh: Mesh) -> tuple[Batch, Any]:
  """The next batch, on its way to the devices, and the pipeline's position after it.

  With `data.colors="device"`, the devices distort its crops now, before anything else sees them.
  """
  batch = sharding.place_batch(next(pipeline), mesh)
  return device_colors.distort_batch(batch), pipeline.get_state()
