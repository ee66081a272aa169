"""Settings of a training of dino.txt that cannot work, told before a run costs anything."""

import functools
import math
from collections.abc import Iterator

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from dinov3_jax.text.state import make_schedules
from dinov3_jax.text.tokenizer import VOCABULARY

POSITIVE = ("train.steps", "train.batch_size", "train.micro_batches", "log_every",
            "checkpoint.every", "checkpoint.keep", "vision_head.depth", "text.depth", "text.width",
            "text.num_heads", "images.size", "evals.images", "data.max_pixels", "data.big_pixels")
ABOVE_ZERO = ("vision_head.ffn_ratio", "text.ffn_ratio", "logit_scale.start")
NOT_NEGATIVE = ("data.workers", "checkpoint.keep_every", "checkpoint.minutes", "evals.every",
                "features.views", "train.max_skipped_steps", "gram.weight",
                "vision_head.layerscale",
                *(f"schedules.{name}.{key}" for name in ("lr", "weight_decay")
                  for key in ("start", "peak", "end", "warmup_steps")))
BELOW_ONE = ("vision_head.drop_path", "optim.b1", "optim.b2")  # 0 included


def check_settings(config: ConfigDict):
  """Raises a ValueError, one line, for settings that no other part of the code refuses in time."""
  problems = list(_no_numbers(config)) or [*_out_of_range(config), *_unknown(config)]
  if problems:
    raise ValueError("; ".join(problems))
  make_schedules(config)  # or its error


def _get(config: ConfigDict, key: str):
  return functools.reduce(getattr, key.split("."), config)


def _no_numbers(config: ConfigDict) -> Iterator[str]:
  for key, value in flatten_dict(config.to_dict(), sep=".").items():
    if isinstance(value, float) and not math.isfinite(value):
      yield f"{key} must be finite, not {value}"


def _out_of_range(config: ConfigDict) -> Iterator[str]:
  for keys, fits, said in (
      (POSITIVE, lambda x: x >= 1, "must be at least 1"),
      (ABOVE_ZERO, lambda x: x > 0, "must be above 0"),
      (NOT_NEGATIVE, lambda x: x >= 0, "must not be negative"),
      (BELOW_ONE, lambda x: 0 <= x < 1, "must be at least 0 and below 1")):
    for key in keys:
      if not fits(_get(config, key)):
        yield f"{key} {said}, not {_get(config, key)}"
  if config.embedding < 2 or config.embedding % 2:
    yield f"embedding must be even, one half CLS and one the mean patch, not {config.embedding}"
  if not 1 <= config.logit_scale.start <= config.logit_scale.highest:
    yield (f"logit_scale.start must be from 1 to logit_scale.highest={config.logit_scale.highest}, "
           f"not {config.logit_scale.start}")


def _unknown(config: ConfigDict) -> Iterator[str]:
  if config.train.dtype not in ("float32", "bfloat16", "float16"):
    yield f"train.dtype must be float32, bfloat16 or float16, not {config.train.dtype!r}"
  if config.checkpoint.on_error not in ("continue", "stop"):
    yield f"checkpoint.on_error must be continue or stop, not {config.checkpoint.on_error!r}"
  if config.text.vocabulary != VOCABULARY:
    yield f"text.vocabulary must be the tokenizer's {VOCABULARY}, not {config.text.vocabulary}"
  if config.text.context < 2:
    yield f"text.context must be at least 2, not {config.text.context}"
  if not config.backbone.weights:
    yield ("backbone.weights is missing: set it to a run's folder, a file of weights or a "
           "released name")
