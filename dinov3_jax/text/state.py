"""What a training of dino.txt carries from step to step, and how it is optimized."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from dinov3_jax.models.partition import path_name
from dinov3_jax.text.networks import Params, init_params
from dinov3_jax.train.optimizer import ParamGroup, scale_by_groups
from dinov3_jax.train.schedules import Schedule, make_schedule

NOT_DECAYED = ("bias", "scale", "gamma", "logit_scale")


@flax.struct.dataclass
class TextState:
  """All arrays of a run; parameters are float32. The frozen backbone is not among them.

  Attributes:
    step: steps taken, int32 scalar.
    student: {"vision_head", "text_tower", "text_head", "logit_scale"}.
    opt_state: of the optax chain.
  """

  step: jax.Array
  student: Params
  opt_state: optax.OptState


def make_schedules(config) -> dict[str, Schedule]:
  """`lr` and `weight_decay` as functions of the step.

  Raises:
    ValueError: a schedule that is longer than `train.steps`.
  """
  schedules = {}
  for name, settings in config.schedules.items():
    try:
      schedules[name] = make_schedule(**settings, total_steps=config.train.steps)
    except ValueError as error:
      raise ValueError(f"schedules.{name}: {error}") from None
  return schedules


def param_groups(params: Params) -> Any:
  """The `ParamGroup` of every parameter: biases, norms, LayerScale and the scale do not decay."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: ParamGroup(1.0, float(path_name(path).split("/")[-1] not in NOT_DECAYED),
                               False), params)


def make_optimizer(config, params: Params) -> optax.GradientTransformationExtraArgs:
  """AdamW, without clipping, for parameters of these shapes; `update` takes `step=`."""
  schedules = make_schedules(config)
  schedules["last_layer_lr"] = schedules["lr"]
  return optax.chain(optax.scale_by_adam(config.optim.b1, config.optim.b2, eps=1e-8),
                     scale_by_groups(param_groups(params), schedules))


def state_from_params(config, student: Params) -> TextState:
  """The state before the first step, from given parameters."""
  return TextState(step=jnp.zeros((), jnp.int32), student=student,
                   opt_state=make_optimizer(config, student).init(student))


def init_state(config, backbone) -> TextState:
  """A fresh state for a backbone of these settings; pure and jittable."""
  return state_from_params(
    config, init_params(config, backbone, jax.random.key(config.seed)))
