"""Schedules as functions of the step."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]


def make_schedule(kind: str, start: float, peak: float, end: float, warmup_steps: int,
                  cosine_steps: int | None, trunc_extra: float, total_steps: int,
                  scale: float = 1.0) -> Schedule:
  """A linear warm-up and half a cosine, in the reference's two conventions.

  Both run from `start` to `peak` over `warmup_steps`, from `peak` to `end` along half a cosine, and
  stay at `end`.

  - "warmup_cosine": the warm-up stops one step short of `peak`; the cosine takes `cosine_steps`
    (None: all that is left of `total_steps`; 0: none at all) and hits both of its ends. `scale`
    multiplies `peak` and `end`.
  - "cosine": the warm-up's last step is at `peak`; the cosine approaches `end`, which the step
    after the last reaches. `trunc_extra` takes the first part of a cosine 1 + trunc_extra times as
    long, stretched so that its last step is at `end`. `scale` multiplies `peak` alone.

  Args:
    scale: what the learning-rate scaling rule comes to.

  Returns:
    A function from a step (int32 scalar or array) to the value (float32).

  Raises:
    ValueError: the phases are longer than `total_steps`, or the kind is unknown.
  """
  if kind not in ("warmup_cosine", "cosine"):
    raise ValueError(f"a schedule's kind must be warmup_cosine or cosine, not {kind!r}")
  n = total_steps - warmup_steps if cosine_steps is None else cosine_steps
  if n < 0 or warmup_steps + n > total_steps:
    raise ValueError(f"a schedule with {warmup_steps} warm-up and {max(n, 0)} cosine steps does "
                     f"not fit train.steps={total_steps}: shorten it or train longer")
  peak = peak * scale
  end = end * scale if kind == "warmup_cosine" else end
  if kind == "warmup_cosine":
    warmup_intervals, period = warmup_steps, n - 1
  else:
    warmup_intervals = warmup_steps - 1
    period = int((1 + trunc_extra) * n) - 1 if trunc_extra else n
  # How far down the whole cosine its last step stands: 1 but for a truncated one.
  depth = (1 - math.cos(math.pi * (n - 1) / period)) / 2 if trunc_extra and n > 1 else 1.0

  def schedule(step: jax.Array) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    warmup = start + (peak - start) * step / max(warmup_intervals, 1)
    fall = (1 - jnp.cos(math.pi * (step - warmup_steps) / max(period, 1))) / 2 / depth
    value = jnp.where(step < warmup_steps, warmup, peak + (end - peak) * fall)
    return jnp.where(step >= warmup_steps + n, end, value).astype(jnp.float32)

  return schedule


def lr_scale(rule: str, batch_size: int) -> float:
  """The learning rate's factor for a batch of `batch_size` images over all devices.

  Args:
    rule: "sqrt_wrt_1024": 4 sqrt(batch / 1024); "linear_wrt_256": batch / 256; "none": 1.
  """
  match rule:
    case "none":
      return 1.0
    case "sqrt_wrt_1024":
      return 4 * math.sqrt(batch_size / 1024)
    case "linear_wrt_256":
      return batch_size / 256
  raise ValueError(
      f"optim.lr_scaling must be none, sqrt_wrt_1024 or linear_wrt_256, not {rule!r}")


def misfits(config) -> list[str]:
  """In one entry, all schedules that are longer than `train.steps`, and what they may be."""
  total, long, short = config.train.steps, [], []

  def fit(keys: list[str], values: list[int], room: int):
    """Notes these settings if together they take more steps than there are."""
    if sum(values) > room:
      lengths = {key: value for key, value in zip(keys, values) if value}
      long.append(" and ".join(f"{key}={value}" for key, value in lengths.items()))
      short.extend(f"--config.{key}={value * max(room, 0) // sum(values)}"
                   for key, value in lengths.items())

  for name, schedule in config.schedules.items():
    fit([f"schedules.{name}.warmup_steps", f"schedules.{name}.cosine_steps"],
        [schedule.warmup_steps, schedule.cosine_steps or 0], total - _first_step(config, name))
  optim = config.optim
  fit(["optim.freeze_backbone_steps", "optim.ramp_backbone_steps"],
      [max(optim.freeze_backbone_steps, 0), optim.ramp_backbone_steps], total)
  if long:  # alone it is allowed, to train with fixed prototypes
    fit(["optim.freeze_last_layer_steps"], [optim.freeze_last_layer_steps], total)
  return [f"train.steps={total} is too short for {', '.join(long)}: lower these, too, for example "
          f"with {' '.join(short)}"] * bool(long)


def _first_step(config, name: str) -> int:
  """The step from which a schedule counts."""
  return config.gram.start_at or 0 if name == "gram_weight" else 0


def make_schedules(config) -> dict[str, Schedule]:
  """Every schedule of `config.schedules` by name, and `last_layer_lr`, the rate of the heads' last
  layers: zero for the first `optim.freeze_last_layer_steps` steps. With `gram.start_at`, the
  steps of `gram_weight` count from there, and it is zero before. Where the backbone does not learn
  from the start, `backbone_ramp` multiplies its rate and its decay."""
  schedules, started = {}, config.gram.start_at
  for name, settings in config.schedules.items():
    scale = lr_scale(config.optim.lr_scaling, config.train.batch_size) if name == "lr" else 1.0
    try:
      schedules[name] = make_schedule(
        **settings, total_steps=config.train.steps - _first_step(config, name), scale=scale)
    except ValueError as error:
      raise ValueError(f"schedules.{name}: {error}") from None
  if started is not None:
    weight = schedules["gram_weight"]
    schedules["gram_weight"] = lambda step: jnp.where(step < started, 0.0, weight(step - started))
  frozen = config.optim.freeze_last_layer_steps
  schedules["last_layer_lr"] = lambda step: jnp.where(step < frozen, 0.0, schedules["lr"](step))
  freeze, ramp = config.optim.freeze_backbone_steps, config.optim.ramp_backbone_steps
  if freeze > 0 or ramp:
    schedules["backbone_ramp"] = lambda step: ramp_after(step, max(freeze, 0), ramp)
  return schedules


def ramp_after(step: jax.Array, freeze: int, ramp: int) -> jax.Array:
  """0 for the first `freeze` steps, then linearly up to 1, which the step after `ramp` more has."""
  done = jnp.asarray(step - freeze + 1, jnp.float32)
  return jnp.clip(done / (ramp + 1), 0.0, 1.0)
