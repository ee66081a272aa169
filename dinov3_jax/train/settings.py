"""Settings that cannot work, told before a run costs anything."""

import functools
import math
from collections.abc import Iterator

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from dinov3_jax.models import eight_bits
from dinov3_jax.models.attention import CHOICES
from dinov3_jax.models.variants import stride
from dinov3_jax.train import tasks
from dinov3_jax.train.schedules import misfits
from dinov3_jax.train.state import has_gram_teacher

# Settings by the values that they may have: the least, the greatest, and whether those themselves
# are allowed.
POSITIVE = (
  "train.steps", "train.batch_size", "log_every", "checkpoint.every", "checkpoint.keep",
  "train.prototype_chunks", "train.micro_batches", "model.patch_size", "model.width",
  "model.depth", "model.num_heads",
  "model.ffn_align", "koleo.group", "koleo.topk", "crops.locals",
  *(f"{head}.{key}" for head in ("dino", "ibot")
    for key in ("prototypes", "hidden", "bottleneck", "layers")))
EVALUATION = ("evals.knn_k", "evals.knn_images", "evals.image_size", "evals.picture_size")
ABOVE_ZERO = ("model.ffn_ratio", "model.norm_eps")
NOT_NEGATIVE = (
  "data.workers", "data.cache_gb", "checkpoint.keep_every", "checkpoint.minutes", "evals.every",
  "evals.pictures", "evals.task_limit",
  "train.max_skipped_steps", "model.storage_tokens", "model.layerscale", "model.rope.base",
  "optim.freeze_last_layer_steps", "optim.patch_embed_lr_mult", "optim.dino_head_wd_mult",
  "health.images", "health.reference_at",
  "gram.refresh_every", "gram.refresh_first", "dino.weight", "ibot.weight", "koleo.weight",
  "cls_preservation.weight", "optim.backbone_lr_mult", "optim.ramp_backbone_steps",
  "model.adapter_rank")
SHARES = ("data.max_damaged", "masks.probability", "crops.color_strength")  # 0 and 1 included
BELOW_ONE = ("model.drop_path", "optim.b1", "optim.b2")  # 0 included
# Lists: those of pixels, and how many entries others have.
SIZES = tuple(f"crops.{key}" for key in ("global_sizes", "local_sizes", "gram_sizes"))
WORDS = ("evals.tasks",)  # lists of text
LENGTHS = {"crops.mean": 3, "crops.std": 3, "masks.ratio": 2, "crops.global_scale": 2,
           "crops.local_scale": 2}


def check_settings(config: ConfigDict):
  """Raises a ValueError, one line, for settings that no other part of the code refuses in time."""
  problems = list(_no_numbers(config)) or [
    *_out_of_range(config), *_unknown(config), *_crops(config), *_gram(config),
    *_adaptation(config), *_schedules(config), *_distillation(config), *_tasks(config)]
  if problems:
    raise ValueError("; ".join(problems))
  has_gram_teacher(config)


def _get(config: ConfigDict, key: str):
  return functools.reduce(getattr, key.split("."), config)


def _there(config: ConfigDict, key: str) -> bool:
  """Whether there is such a setting; a ConvNeXt has not all those of a ViT."""
  return not key.startswith("model.") or key.split(".")[1] in config.model


def _no_numbers(config: ConfigDict) -> Iterator[str]:
  """What is NaN or infinite; and of lists, whose entries a config does not check, what is text or
  of another length."""
  for key, value in flatten_dict(config.to_dict(), sep=".").items():
    is_list = isinstance(value, tuple | list)
    entries = value if is_list else [value]
    length = LENGTHS.get(key, len(entries))
    if key in WORDS:
      continue
    if is_list and key not in SIZES and (
        len(entries) != length or not all(isinstance(x, int | float) for x in entries)):
      count = f"{length} numbers" if key in LENGTHS else "numbers"
      yield f"{key} must be {count}, not {tuple(value)}"
    elif key not in SIZES and any(isinstance(x, float) and not math.isfinite(x) for x in entries):
      yield f"{key} must be finite, not {value}"


def _out_of_range(config: ConfigDict) -> Iterator[str]:
  evaluation = EVALUATION if config.evals.every else ()
  for keys, fits, said in (
      ((*POSITIVE, *evaluation), lambda x: x >= 1, "must be at least 1"),
      (ABOVE_ZERO, lambda x: x > 0, "must be above 0"),
      (NOT_NEGATIVE, lambda x: x >= 0, "must not be negative"),
      (SHARES, lambda x: 0 <= x <= 1, "must be a share from 0 to 1"),
      (BELOW_ONE, lambda x: 0 <= x < 1, "must be at least 0 and below 1")):
    for key in filter(functools.partial(_there, config), keys):
      if not fits(_get(config, key)):
        yield f"{key} {said}, not {_get(config, key)}"
  if not config.optim.clip > 0:
    yield (f"optim.clip must be above 0, not {config.optim.clip}: it is the greatest norm of a "
           "gradient, and a large one, such as 1e9, clips nothing")
  if not 0 < config.optim.layerwise_decay <= 1:
    yield f"optim.layerwise_decay must be above 0 and at most 1, not {config.optim.layerwise_decay}"


def _unknown(config: ConfigDict) -> Iterator[str]:
  if config.train.dtype not in ("float32", "bfloat16", "float16"):
    yield f"train.dtype must be float32, bfloat16 or float16, not {config.train.dtype!r}"
  if config.train.attention not in CHOICES:
    yield f"train.attention must be auto, xla or cudnn, not {config.train.attention!r}"
  if config.train.attention == "cudnn" and config.train.dtype == "float32":
    yield ("train.attention='cudnn' computes in bfloat16 or float16, not in train.dtype='float32': "
           "set one of these, or train.attention='auto'")
  if config.train.matmul not in eight_bits.CHOICES:
    yield f"train.matmul must be fp8, int8 or nothing, not {config.train.matmul!r}"
  if config.train.matmul and {"depths", "callable"} & set(config.model):
    yield (f"train.matmul={config.train.matmul!r} is for the blocks of a ViT, which this network "
           "does not have: leave it empty")
  if config.checkpoint.on_error not in ("continue", "stop"):
    yield f"checkpoint.on_error must be continue or stop, not {config.checkpoint.on_error!r}"
  if config.model.in_channels != 3:
    yield f"model.in_channels must be 3, not {config.model.in_channels}: the images are RGB"


def _distillation(config: ConfigDict) -> Iterator[str]:
  distill = config.distill
  if not distill.teacher and (distill.digest or list(config.students)):
    what = "distill.digest" if distill.digest else "students"
    yield f"{what} without a teacher: set distill.teacher to a run's folder or a file with heads"
  if "depths" in config.model:
    model = config.model
    if (len(model.depths), len(model.dims)) != (4, 4) or min(*model.depths, *model.dims) < 1:
      yield ("a ConvNeXt has four stages, each of a block or more, not model.depths="
             f"{tuple(model.depths)} and model.dims={tuple(model.dims)}")


def _tasks(config: ConfigDict) -> Iterator[str]:
  for entry in config.evals.tasks:
    try:
      tasks.split(entry)
    except ValueError as error:
      yield str(error)


def _crops(config: ConfigDict) -> Iterator[str]:
  crops, patch = config.crops, stride(config.model)
  lists = ("global_sizes", "local_sizes", "gram_sizes", "size_weights")
  if len({len(crops[key]) for key in lists}) > 1 or not crops.size_weights:
    yield f"crops.{', '.join(lists)} must be of one length, an entry a resolution"
  if not all(x > 0 for x in crops.std):
    yield f"crops.std must be above 0, not {tuple(crops.std)}"
  for key in SIZES:
    if not all(isinstance(size, int) for size in _get(config, key)):
      yield f"{key} must be whole numbers of pixels, not {tuple(_get(config, key))}"
  if all(isinstance(size, int) for size in crops.gram_sizes):
    kinds = {size > 0 for size in crops.gram_sizes}
    if True in kinds and (config.gram.teacher != "own" or len(kinds) > 1):
      yield (f"gram.teacher={config.gram.teacher!r} does not go with crops.gram_sizes="
             f"{tuple(crops.gram_sizes)}: only a teacher of its own reads Gram crops, and needs "
             "them at all resolutions or, with sizes of 0, at none")
  for key in ("image_size", "picture_size"):
    if config.evals.every and patch > 0 and config.evals[key] % patch:
      yield f"evals.{key} {config.evals[key]} is not a multiple of the patch size {patch}"


def _adaptation(config: ConfigDict) -> Iterator[str]:
  optim, weight = config.optim, config.cls_preservation.weight
  if weight > 0 and config.gram.teacher != "own":
    yield (f"cls_preservation.weight={weight} needs what the features should stay close to: set "
           "gram.teacher=own, whose forward pass gives both")
  if optim.freeze_backbone_steps < -1:
    yield (f"optim.freeze_backbone_steps must not be below -1, not {optim.freeze_backbone_steps}: "
           "-1 keeps the backbone frozen to the end")
  elif optim.freeze_backbone_steps < 0 and optim.ramp_backbone_steps:
    yield (f"optim.ramp_backbone_steps={optim.ramp_backbone_steps} comes after a frozen phase, and "
           "with optim.freeze_backbone_steps=-1 that has no end: set one of them to 0")
  if optim.freeze_backbone_steps >= config.train.steps > 0:
    yield (f"optim.freeze_backbone_steps={optim.freeze_backbone_steps} leaves the backbone none of "
           f"train.steps={config.train.steps}: lower it, or set it to -1 if that is meant")
  if config.evals.general and not config.evals.every:
    yield (f"evals.general={config.evals.general!r} is never evaluated with evals.every=0: set "
           "evals.every, too")
  if config.evals.best and not config.evals.every:
    yield (f"evals.best={config.evals.best!r} is a metric of evaluations, and with evals.every=0 "
           "there are none: set evals.every, too")


def _gram(config: ConfigDict) -> Iterator[str]:
  gram, start = config.gram, config.gram.start_at
  if start is None:
    return
  if gram.teacher == "none":
    yield (f"gram.start_at={start} needs a teacher: gram.teacher=own, which becomes a copy of the "
           "EMA teacher then, or ema")
  if not 0 <= start < config.train.steps:
    yield f"gram.start_at must be a step from 0 to train.steps - 1, not {start}"
  if gram.copy_ema_at is not None or gram.init_from:
    yield (f"gram.start_at={start} takes the run's own EMA teacher: leave out gram.copy_ema_at and "
           "gram.init_from, or gram.start_at")


def _schedules(config: ConfigDict) -> Iterator[str]:
  bounds = dict(lr=(0, math.inf), weight_decay=(0, math.inf), momentum=(0, 1),
                teacher_temp=(0, math.inf), dino_local_weight=(0, math.inf),
                gram_weight=(0, math.inf))
  for name, schedule in config.schedules.items():
    low, high = bounds[name]
    for key in ("start", "peak", "end"):
      if not low <= schedule[key] <= high:
        said = "must not be negative" if high == math.inf else f"must be from {low} to {high}"
        yield f"schedules.{name}.{key} {said}, not {schedule[key]}"
    if schedule.trunc_extra < 0:
      yield f"schedules.{name}.trunc_extra must not be negative, not {schedule.trunc_extra}"
    if schedule.warmup_steps < 0 or (schedule.cosine_steps or 0) < 0:
      yield f"schedules.{name} has a negative number of steps"
  if config.schedules.teacher_temp.peak <= 0:
    yield "schedules.teacher_temp.peak must be above 0"
  if config.train.steps > 0:
    yield from misfits(config)
