"""The official trainer's YAML settings, translated to ours."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import base
from dinov3_jax.models.variants import REFERENCE_ARCHITECTURES, VARIANTS, stride

# Read by nobody there, or by machinery that has no counterpart here.
IGNORED = {
    "MODEL": {"*"},
    "hrft": {"*"},
    "compute_precision": {"sharding_strategy", "reduce_dtype", "buffer_dtype"},
    "dino": {"head_norm_last_layer", "force_weight_norm", "koleo_distributed_replicas",
             "koleo_distributed_loss_group_data"},
    "ibot": {"head_norm_last_layer", "force_masking_even_with_zero_weight"},
    "train": {"data_config", "saveckp_freq", "monitor_gradient_norm", "chunk_schedule",
              "use_teacher_head", "learn_from_teacher_tokens", "dataset_path", "output_dir",
              "compile", "cudagraphs", "sharded_eval_checkpoint", "cache_dataset"},
    "student": {"pos_embed_type", "pretrained_weights", "fp8_enabled", "fp8_filter", "patch_drop",
                "resume_from_teacher_chkpt"},
    "teacher": {"in_chans"},
    "optim": {"optimizer", "dump_fsdp_weights_path", "multi_tensor_optim"},
    "evaluation": {"low_freq_every", "config_files"},
    "crops": {"cell_augmentation", "cell_augmentation_type"},
}

DTYPES = {"fp32": "float32", "float32": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16"}
NORMS = {"layernorm": ("layernorm", 1e-6), "layernormbf16": ("layernorm", 1e-5),
         "rmsnorm": ("rmsnorm", 1e-5)}
SWITCHES = ("qkv_bias", "proj_bias", "ffn_bias", "mask_k_bias", "untie_cls_and_patch_norms",
            "untie_global_and_local_cls_norm")


class Section:
  """One section of the official settings; remembers which keys were asked for."""

  def __init__(self, name: str, values: Mapping[str, Any] | None):
    self.name = name
    self.values = dict(values or {})
    self.left = set(self.values)

  def get(self, key: str, default: Any = None) -> Any:
    """The value of `key`; an absent one, or null, is `default`."""
    self.left.discard(key)
    value = self.values.get(key)
    return default if value is None else value

  def has(self, key: str) -> bool:
    return self.values.get(key) is not None

  def choice(self, key: str, default: str, choices: Mapping[str, Any]) -> Any:
    """`choices[value]`, or an error that names them."""
    value = self.get(key, default)
    if value not in list(choices):
      raise ValueError(f"{self.name}.{key}={value!r} is not supported; "
                       f"use one of {', '.join(map(str, choices))}")
    return choices[value]

  def require(self, key: str, value: Any):
    """Refuses any value of `key` but this one."""
    self.choice(key, value, {value: value})


def config(cfg: Mapping[str, Any], width: int | None = None, depth: int | None = None,
           num_heads: int | None = None, world_size: int = 1, *,
           depths: Sequence[int] | None = None, dims: Sequence[int] | None = None,
           student: str | None = None) -> ConfigDict:
  """Our settings for an official training YAML.

  What the YAML leaves out has the reference's default, but that the computation is in float32 where
  `compute_precision` is absent. `ffn_ratio`, `in_chans` and `pos_embed_rope_dtype`, which the
  reference reads and drops, are honoured.

  Args:
    cfg: the YAML as a dict.
    width, depth, num_heads: in place of those of `student.arch`.
    world_size: processes; each has `train.batch_size_per_gpu` images, which are one data shard's
      batch and its KoLeo group.
    depths, dims: the same of a ConvNeXt, whose `student.arch` begins with "convnext".
    student: of a distillation of several students, the name of the one that `cfg` is for; each of
      its processes is a data shard here, and `world_size` has no effect.

  A distillation's teacher, `distillation.checkpoint_path`, becomes `distill.teacher`, and "ignore",
  which there means a random one, the empty name.

  Returns:
    A locked `ConfigDict` as from `configs/base.py`.

  Raises:
    ValueError: a key that the reference does not know, or a value that has no counterpart here.
      Keys that have no effect there are named in one warning.
  """
  names = ["student", "teacher", "dino", "ibot", "gram", "optim", "schedules", "crops", "train",
           "compute_precision", "checkpointing", "evaluation", "distillation", "multidistillation"]
  sections = {name: Section(name, cfg.get(name)) for name in names}
  ours = base.get_config().unlock()
  sizes = dict(width=width, depth=depth, num_heads=num_heads, depths=depths, dims=dims)
  _translate(ours, sections, sizes, world_size, student)
  _report_unused(cfg, sections)
  return ours.lock()


def _report_unused(cfg, sections):
  unknown, ignored = [], []
  for name in cfg:
    known = IGNORED.get(name, set())
    if name not in sections:
      (ignored if "*" in known else unknown).append(name)
      continue
    for key in sorted(sections[name].left):
      (ignored if key in known else unknown).append(f"{name}.{key}")
  if unknown:
    raise ValueError(f"unknown settings: {', '.join(unknown)}; correct or remove them")
  if ignored:
    warnings.warn(f"settings without effect: {', '.join(ignored)}", stacklevel=3)


def _translate(ours, sections, sizes, world_size, student):
  train, optim, crops = sections["train"], sections["optim"], sections["crops"]
  distillation = sections["distillation"]
  distilled = distillation.get("enabled", False)
  distillation.left -= {"full_cfg_path", "checkpoint_path"}
  if distilled:
    checkpoint = distillation.get("checkpoint_path", "")
    ours.distill.teacher = "" if checkpoint == "ignore" else checkpoint
  shard = train.get("batch_size_per_gpu", 64)
  shard, world_size = _shards(sections["multidistillation"], student, shard, world_size)
  epoch = train.get("OFFICIAL_EPOCH_LENGTH", 1250)
  ours.seed = train.get("seed", 0)
  ours.train.batch_size = shard * world_size
  ours.train.steps = optim.get("epochs", 100) * epoch
  checkpointing = train.get("checkpointing", False)
  ours.train.remat = ("full" if train.get("checkpointing_full", False)
                      else "dots" if checkpointing else "none")
  ours.train.dtype = sections["compute_precision"].choice("param_dtype", "fp32", DTYPES)
  ours.data.workers = train.get("num_workers", 10)
  train.require("centering", "sinkhorn_knopp")

  checkpoints, evaluation = sections["checkpointing"], sections["evaluation"]
  ours.checkpoint.every = checkpoints.get("period", ours.checkpoint.every)
  ours.checkpoint.keep = checkpoints.get("max_to_keep", ours.checkpoint.keep)
  ours.checkpoint.keep_every = checkpoints.get("keep_every", ours.checkpoint.keep_every)
  ours.evals.every = evaluation.get("eval_period_iterations", ours.evals.every)

  _model(ours, sections["student"], sizes)
  _losses(ours, sections["dino"], sections["ibot"], shard, shard * world_size)
  _optim(ours.optim, optim)
  if sections["schedules"].values:
    _new_schedules(ours, sections["schedules"], epoch)
    # Both families' keys may be there; the older ones have no effect then.
    optim.left -= {"lr", "min_lr", "warmup_epochs", "weight_decay", "weight_decay_end",
                   "freeze_last_layer_epochs", "schedule_trunc_extra"}
    sections["teacher"].left -= {"momentum_teacher", "final_momentum_teacher", "teacher_temp",
                                 "warmup_teacher_temp", "warmup_teacher_temp_epochs"}
  else:
    _old_schedules(ours, optim, sections["teacher"], epoch)
  _gram(ours, sections["gram"], epoch)
  _dino_local_weight(ours, sections["dino"], epoch)
  _crops(ours.crops, crops)
  # The reference counts on the same patch size for teacher and student; a ConvNeXt has none.
  crops.require("teacher_to_student_resolution_scale",
                stride(ours.model) / sections["student"].get("patch_size", 16))


def _shards(several, student, shard, world_size):
  """The images of a data shard and the number of shards."""
  if not several.get("enabled", False):
    several.left.clear()
    return shard, world_size
  students = {entry["name"]: entry["ranks_range"] for entry in several.get("students", [])}
  images = several.get("global_batch_size", 0)
  if student not in students:
    raise ValueError(f"multidistillation.students are {', '.join(students)}: say which of them the "
                     f"settings are for, not {student!r}")
  ranks = students[student][1] - students[student][0]
  world = max(end for _, end in students.values())
  if images < 1 or images % ranks or images % world:
    raise ValueError(f"multidistillation.global_batch_size={images} must be a multiple of {student}"
                     f"'s {ranks} processes and of all {world}")
  return images // ranks, ranks


def _model(ours, student, sizes):
  arch = student.get("arch", "vit_large")
  if arch.startswith("convnext"):
    _convnext(ours, student, arch, sizes)
  else:
    _vit(ours.model, student, arch, sizes)


def _convnext(ours, student, arch, sizes):
  known = VARIANTS[arch].settings if arch in VARIANTS else {}
  depths, dims = (sizes[name] or known.get(name) for name in ("depths", "dims"))
  if not depths or not dims:
    names = ", ".join(name for name in VARIANTS if name.startswith("convnext"))
    raise ValueError(f"student.arch={arch!r} is not one of {names}; give depths and dims")
  ours.model = base.convnext(depths, dims, drop_path=float(student.get("drop_path_rate", 0.0)),
                             in_channels=student.get("in_chans", 3))
  student.get("patch_size")
  student.left -= {"ffn_layer", "ffn_ratio", "norm_layer", "layerscale", "n_storage_tokens",
                   *(key for key in student.left if key.startswith("pos_embed_rope_")), *SWITCHES}


def _vit(model, student, arch, sizes):
  known = REFERENCE_ARCHITECTURES.get(arch, {})
  sizes = {name: sizes[name] or known.get(name) for name in ("width", "depth", "num_heads")}
  if None in sizes.values():
    raise ValueError(f"student.arch={arch!r} is not one of {', '.join(REFERENCE_ARCHITECTURES)}; "
                     "give width, depth and num_heads")
  ffns = {"mlp": ("mlp", 8), "swiglu": ("swiglu", 8)}
  ffns |= {f"swiglu{n}": ("swiglu", n) for n in (32, 64, 128)}
  ffn, align = student.choice("ffn_layer", "mlp", ffns)
  norm, eps = student.choice("norm_layer", "layernorm", NORMS)
  model.update(
      sizes, ffn=ffn, ffn_align=align, norm=norm, norm_eps=eps,
      ffn_ratio=float(student.get("ffn_ratio", known.get("ffn_ratio", 4.0))),
      patch_size=student.get("patch_size", 16), in_channels=student.get("in_chans", 3),
      layerscale=student.get("layerscale", 0.0 if "layerscale" in student.values else 1e-5),
      drop_path=float(student.get("drop_path_rate", 0.3)),
      storage_tokens=student.get("n_storage_tokens", 0))
  for theirs in SWITCHES:
    model[theirs] = student.get(theirs, model[theirs])
  rope = lambda name, default=None: student.get(f"pos_embed_rope_{name}", default)
  low, high = rope("min_period"), rope("max_period")
  model.rope.update(
      base=float(rope("base", 100.0 if low is None else 0.0)), min_period=low, max_period=high,
      normalize=rope("normalize_coords", "separate"), shift=_float(rope("shift_coords")),
      jitter=_float(rope("jitter_coords")), rescale=_float(rope("rescale_coords")),
      dtype=student.choice("pos_embed_rope_dtype", "bf16", DTYPES))


def _float(value):
  return None if value is None else float(value)


def _losses(ours, dino, ibot, shard, batch_size):
  for head, theirs in ((ours.dino, dino), (ours.ibot, ibot)):
    head.update(weight=float(theirs.get("loss_weight", 1.0)),
                prototypes=theirs.get("head_n_prototypes", 65536),
                hidden=theirs.get("head_hidden_dim", 2048),
                bottleneck=theirs.get("head_bottleneck_dim", 256),
                layers=theirs.get("head_nlayers", 3))
  ours.dino.ignore_diagonal = dino.get("global_ignore_diagonal", True)
  distributed = dino.get("koleo_loss_distributed", False)
  group = dino.get("koleo_distributed_loss_group_size", batch_size)
  ours.koleo.update(weight=float(dino.get("koleo_loss_weight", 0.1)),
                    topk=dino.get("koleo_topk", 1), group=group if distributed else shard)
  ibot.require("separate_head", True)
  ours.masks.update(probability=ibot.get("mask_sample_probability", 0.5),
                    ratio=tuple(ibot.get("mask_ratio_min_max", (0.1, 0.5))),
                    circular_shift=ibot.get("mask_random_circular_shift", False))


def _optim(ours, optim):
  ours.update(b1=optim.get("adamw_beta1", 0.9), b2=optim.get("adamw_beta2", 0.999),
              clip=float(optim.get("clip_grad", 3.0)),
              lr_scaling=optim.get("scaling_rule", "sqrt_wrt_1024"),
              layerwise_decay=float(optim.get("layerwise_decay", 0.9)),
              patch_embed_lr_mult=float(optim.get("patch_embed_lr_mult", 0.2)),
              dino_head_wd_mult=float(optim.get("dino_head_wd_multiplier", 1.0)))


def _schedule(name: str, values: Mapping[str, Any], epoch: int) -> dict[str, Any]:
  """A schedule of the newer family, its times in epochs."""
  section = Section(name, values)
  steps = lambda epochs: None if epochs is None else int(epochs * epoch)
  result = base.warmup_cosine(
      *(float(section.get(key, 0.0)) for key in ("start", "peak", "end")),
      steps(section.get("warmup_epochs", 0)), steps(section.get("cosine_epochs")))
  unknown = section.left - {"freeze_last_layer_epochs"}
  if unknown:
    raise ValueError(f"unknown settings: {', '.join(f'{name}.{key}' for key in sorted(unknown))}")
  return result


def _new_schedules(ours, schedules, epoch):
  for name in ("lr", "weight_decay", "momentum", "teacher_temp"):
    values = schedules.get(name)
    if values is None:
      raise ValueError(f"schedules.{name} is missing")
    ours.schedules[name] = _schedule(f"schedules.{name}", values, epoch)
  freeze = schedules.get("lr").get("freeze_last_layer_epochs") or 0
  ours.optim.freeze_last_layer_steps = int(freeze * epoch)


def _old_schedules(ours, optim, teacher, epoch):
  extra = float(optim.get("schedule_trunc_extra", 0.0))
  cosine = lambda peak, end, **kwargs: base.cosine(float(peak), float(end), **kwargs)
  temp = float(teacher.get("teacher_temp", 0.07))
  ours.schedules.update(
      lr=cosine(optim.get("lr", 1e-3), optim.get("min_lr", 1e-6), trunc_extra=extra,
                warmup_steps=optim.get("warmup_epochs", 10) * epoch),
      weight_decay=cosine(optim.get("weight_decay", 0.04), optim.get("weight_decay_end", 0.4),
                          trunc_extra=extra),
      momentum=cosine(teacher.get("momentum_teacher", 0.992),
                      teacher.get("final_momentum_teacher", 1.0), trunc_extra=extra),
      teacher_temp=base.cosine(
          temp, temp, start=float(teacher.get("warmup_teacher_temp", 0.04)),
          warmup_steps=teacher.get("warmup_teacher_temp_epochs", 30) * epoch))
  ours.optim.freeze_last_layer_steps = optim.get("freeze_last_layer_epochs", 1) * epoch


def _gram(ours, gram, epoch):
  negatives = "remove" if gram.get("remove_neg", False) else "keep"
  if gram.get("remove_only_teacher_neg", False):
    if negatives == "remove":
      raise ValueError("gram.remove_neg and gram.remove_only_teacher_neg exclude each other")
    negatives = "remove_teacher_only"
  gram.require("global_teacher_resize_method", "bicubic")
  gram.require("global_teacher_resize_antialias", False)
  repeat = gram.get("rep_update", True)
  copy_at = gram.get("it_load_ema_teacher", -1)
  settings = dict(
      refresh_every=gram.get("update_frequency", 50_000), max_refreshes=gram.get("max_updates"),
      refresh_first=gram.get("it_first_update", 0), copy_ema_at=copy_at if copy_at >= 0 else None)
  own = not gram.get("ema_teacher", False)
  ckpt = gram.get("ckpt", "")
  ours.gram.update(normalized=gram.get("normalized", True), negatives=negatives,
                   image_level=gram.get("img_level", False), tokens=gram.get("tokens_used", "all"),
                   stats=gram.get("compute_stats", False))
  weight = gram.get("loss_weight_schedule")
  constant = float(gram.get("loss_weight", 1.0))
  if not gram.get("use_loss", False):
    return
  ours.gram.update(teacher="own" if own else "ema")
  if own:
    ours.gram.update(settings if repeat else settings | dict(refresh_every=0),
                     init_from="" if ckpt == "ignore" else ckpt)
  ours.schedules.gram_weight = (base.constant(constant) if weight is None else
                                _schedule("gram.loss_weight_schedule", weight, epoch))


def _dino_local_weight(ours, dino, epoch):
  schedule = dino.get("local_loss_weight_schedule")
  if dino.get("reweight_dino_local_loss", False):
    if schedule is None:
      raise ValueError("dino.reweight_dino_local_loss needs dino.local_loss_weight_schedule")
    ours.schedules.dino_local_weight = _schedule("dino.local_loss_weight_schedule", schedule, epoch)


def _crops(ours, crops):
  as_tuple = lambda x: tuple(x) if isinstance(x, list | tuple) else (x,)
  sizes = as_tuple(crops.get("global_crops_size", 224))
  local = as_tuple(crops.get("local_crops_size", 96))
  gram = as_tuple(crops.get("gram_teacher_crops_size", 0))
  ours.update(
      global_sizes=sizes, local_sizes=local,
      gram_sizes=gram if len(gram) == len(sizes) else gram * len(sizes),
      size_weights=tuple(map(float, as_tuple(crops.get("global_local_crop_pairs_ratios", 1.0)))),
      locals=crops.get("local_crops_number", 8),
      global_scale=tuple(crops.get("global_crops_scale", (0.32, 1.0))),
      local_scale=tuple(crops.get("local_crops_scale", (0.05, 0.32))),
      horizontal_flip=crops.get("horizontal_flips", True),
      share_color_jitter=crops.get("share_color_jitter", False),
      locals_from_globals=crops.get("localcrops_subset_of_globalcrops", False),
      gram_distortions=not crops.get("gram_teacher_no_distortions", False),
      mean=tuple(crops.get("rgb_mean", (0.485, 0.456, 0.406))),
      std=tuple(crops.get("rgb_std", (0.229, 0.224, 0.225))))
