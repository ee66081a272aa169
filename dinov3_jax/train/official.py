"""The official DINOv3 trainer's parameters, batches and settings, as ours and back."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dinov3_jax.train.official_config import config
from dinov3_jax.train.state import (
  TrainState,
  abstract_modules,
  has_gram_teacher,
  state_from_params,
)
from dinov3_jax.weights.naming import Params, contradictions, flatten, unflatten

__all__ = ["batch", "config", "distilled_state", "state_dict", "teacher_params", "train_state"]


def train_state(config, arrays: Mapping[str, np.ndarray]) -> TrainState:
  """The state before the first step, from the official trainer's parameters.

  Args:
    config: the run's settings, for instance from `config()`.
    arrays: by official name: `student.` and `teacher.`, each followed by `backbone.`, `dino_head.`
      or `ibot_head.`, and `gram.backbone.` where the run has a Gram teacher of its own. Buffers
      (RoPE periods, the mask of the K bias) may be there or not.

  Raises:
    ValueError: one line that lists each parameter left unfilled, each key left unused, each shape
      that does not fit, and each buffer that contradicts the architecture.
  """
  _, params = abstract_modules(config)
  shapes = {"student": params, "teacher": params}
  if has_gram_teacher(config):
    shapes["gram"] = {"backbone": params["backbone"]}
  filled = _filled(config, arrays, shapes)
  return state_from_params(config, filled["student"], filled["teacher"], filled.get("gram"))


def distilled_state(config, arrays: Mapping[str, np.ndarray]) -> TrainState:
  """The state of a student before the first step of a distillation, as `train_state`.

  Args:
    config: the student's settings.
    arrays: by official name: `student.` and, in a checkpoint, its average `model_ema.`, which
      starts as a copy of the student; those of the frozen `teacher.` are left out.
  """
  _, params = abstract_modules(config)
  own = {name: x for name, x in arrays.items() if not name.startswith("teacher.")}
  average = any(name.startswith("model_ema.") for name in own)
  shapes = {"student": params} | ({"model_ema": params} if average else {})
  filled = _filled(config, own, shapes)
  student = filled["student"]
  return state_from_params(config, student,
                           filled.get("model_ema") or jax.tree.map(jnp.copy, student))


def teacher_params(config, arrays: Mapping[str, np.ndarray]) -> Params:
  """The frozen teacher of a distillation, heads included, as `train_state`.

  Args:
    config: the teacher's own settings.
    arrays: by official name; those of `teacher.` are taken.
  """
  own = {name: x for name, x in arrays.items() if name.startswith("teacher.")}
  return _filled(config, own, {"teacher": abstract_modules(config)[1]})["teacher"]


def _filled(config, arrays: Mapping[str, np.ndarray], shapes: Params) -> Params:
  settings = config.model.to_dict()
  problems = [] if "depths" in settings else contradictions(arrays, settings)
  if problems:
    raise ValueError(f"these weights are of another architecture: {'; '.join(problems)}")
  return jax.tree.map(jnp.asarray, unflatten(arrays, shapes))


def state_dict(params: Params) -> dict[str, np.ndarray]:
  """Parameters under official names and in the official layout, bit for bit.

  Args:
    params: any tree of ours, for instance `state.student` (names start with `backbone.`, ...) or
      {"teacher": state.teacher} (`teacher.backbone.`, ...).
  """
  return flatten(params)


def batch(arrays: Mapping[str, np.ndarray], shards: int = 1) -> dict[str, Any]:
  """A batch of ours from the official collated layout.

  Args:
    arrays: `global_crops` [2 B, 3, H, W], `local_crops` [L B, 3, h, w] and, optionally,
      `gram_crops`, crop-major (crop 0 of every image first); `masks` [2 B, N]; `mask_indices` and
      `mask_weights` are derived from the masks anew, because their order changes.
    shards: data shards, each with the same number of masked patches.

  Raises:
    ValueError: the shards do not divide the images, or hold different numbers of masked patches.
  """
  masks = np.asarray(arrays["masks"])
  images = len(masks) // 2
  if images % shards:
    raise ValueError(f"{shards} shards do not divide {images} images")

  def image_major(crops):
    crops = np.asarray(crops).reshape(-1, images, *crops.shape[1:])
    return np.ascontiguousarray(crops.swapaxes(0, 1))

  result = {name: np.moveaxis(image_major(arrays[name]), 2, -1)
            for name in ("global_crops", "local_crops", "gram_crops") if name in arrays}
  masks = image_major(masks)
  own = masks.reshape(shards, -1, masks.shape[-1])
  counts = own.sum((1, 2))
  if len(set(counts.tolist())) > 1:
    raise ValueError(f"the shards hold {counts.tolist()} masked patches; each must hold as many")
  per_crop = own.sum(-1, keepdims=True)
  weights = np.broadcast_to(1 / np.maximum(per_crop, 1), own.shape).astype(np.float32)
  flat = own.reshape(shards, -1)
  return result | dict(
      masks=masks,
      mask_indices=np.stack([np.flatnonzero(row) for row in flat]).astype(np.int32),
      mask_weights=np.stack([w[m] for w, m in zip(weights, own)]))
