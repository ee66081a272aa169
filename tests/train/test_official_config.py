import warnings

import numpy as np
import pytest

from configs import base
from dinov3_jax.train.official import config
from dinov3_jax.train.schedules import make_schedules

EMPTY = dict(dino={}, ibot={}, train={}, student={}, optim={}, crops={}, teacher={})
OLD_KEYS = dict(lr=None, min_lr=None, weight_decay=None, weight_decay_end=None, warmup_epochs=None)


def merge(*settings):
  """Nested dicts, later ones over earlier ones."""
  result = {}
  for each in settings:
    for key, value in each.items():
      both = isinstance(value, dict) and isinstance(result.get(key), dict)
      result[key] = merge(result[key], value) if both else value
  return result


def schedule(start, peak, end, warmup=0, cosine=None, **more):
  result = dict(start=start, peak=peak, end=end, warmup_epochs=warmup) | more
  return result if cosine is None else result | dict(cosine_epochs=cosine)


# The three stages of the 7B model, as the reference's files differ from its defaults.
PRETRAIN = dict(
    dino=dict(head_n_prototypes=262144, head_bottleneck_dim=512, head_hidden_dim=8192,
              koleo_loss_distributed=False),
    ibot=dict(head_n_prototypes=98304, head_bottleneck_dim=384, head_hidden_dim=4096),
    gram=dict(use_loss=False),
    train=dict(batch_size_per_gpu=16, OFFICIAL_EPOCH_LENGTH=1000, cache_dataset=True,
               checkpointing=True, checkpointing_full=False, num_workers=10),
    student=dict(arch="vit_7b", drop_path_rate=0.4, ffn_layer="swiglu64", ffn_ratio=3,
                 qkv_bias=False, norm_layer="layernormbf16", n_storage_tokens=4, mask_k_bias=True,
                 untie_global_and_local_cls_norm=True, pos_embed_rope_base=100,
                 pos_embed_rope_rescale_coords=2, pos_embed_rope_dtype="fp32", fp8_enabled=True),
    teacher=dict(momentum_teacher=None, warmup_teacher_temp=None),
    optim=OLD_KEYS | dict(epochs=1000, clip_grad=30.0, layerwise_decay=0.98, adamw_beta2=0.99),
    schedules=dict(lr=schedule(0, 5e-5, 5e-5, 100, freeze_last_layer_epochs=5),
                   weight_decay=schedule(0.04, 0.04, 0.04),
                   teacher_temp=schedule(0.04, 0.07, 0.07, 100),
                   momentum=schedule(0.994, 0.994, 0.994)),
    crops=dict(global_crops_size=256, local_crops_size=112, horizontal_flips=False),
    compute_precision=dict(param_dtype="bf16", reduce_dtype="fp32",
                           sharding_strategy="SHARD_GRAD_OP"),
    checkpointing=dict(period=1000, keep_every=50000),
)
GRAM_ANCHOR = merge(PRETRAIN, dict(
    dino=dict(reweight_dino_local_loss=True,
              local_loss_weight_schedule=schedule(1.0, 1.0, 0.5, 1000, 1)),
    gram=dict(use_loss=True, ckpt="ignore", rep_update=True, update_frequency=10000,
              it_first_update=1010000, max_updates=3, img_level=True, normalized=True,
              loss_weight_schedule=schedule(0, 0, 2.0, 1000, 1)),
    train=dict(checkpointing_full=True),
    optim=dict(epochs=1200),
    schedules=dict(lr=schedule(0, 3e-5, 3e-5, 100, freeze_last_layer_epochs=5),
                   momentum=schedule(0.999, 0.999, 0.999)),
    crops=dict(gram_teacher_crops_size=512, gram_teacher_no_distortions=True),
))
HIGH_RES = merge(GRAM_ANCHOR, dict(
    dino=dict(koleo_loss_distributed=True, koleo_distributed_loss_group_size=16,
              local_loss_weight_schedule=schedule(0.5, 0.5, 0.5, 0, 0)),
    gram=dict(ckpt="runs/gram", rep_update=False,
              loss_weight_schedule=schedule(1.5, 1.5, 1.5)),
    train=dict(batch_size_per_gpu=8),
    optim=dict(epochs=30),
    schedules=dict(lr=schedule(0, 0, 1.25e-5, 0, 10, freeze_last_layer_epochs=0),
                   teacher_temp=schedule(0.07, 0.07, 0.07)),
    crops=dict(global_crops_size=[512, 768, 768, 768, 768],
               local_crops_size=[112, 112, 168, 224, 336],
               gram_teacher_crops_size=[768, 1152, 1152, 1152, 1152],
               global_local_crop_pairs_ratios=[.3, .3, .3, .05, .05]),
    checkpointing=dict(period=250),
))


def translate(cfg, **arguments):
  """Ours, without the warning of settings that have no effect."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "settings without effect")
    return config(cfg, **arguments)


def values(ours, name, *steps):
  return np.asarray(make_schedules(ours)[name](np.array(steps)))


def assert_holds(section, **expected):
  """The section has these values, perhaps among others that the reference does not know."""
  assert {key: section.to_dict()[key] for key in expected} == expected


def test_7b_pretraining():
  ours = translate(PRETRAIN, world_size=256)
  assert ours.train.batch_size == 4096 and ours.koleo.group == 16 and ours.koleo.topk == 1
  assert ours.train.steps == 1_000_000 and ours.train.dtype == "bfloat16"
  assert ours.train.remat == "dots"
  assert_holds(ours.dino, weight=1.0, prototypes=262144, hidden=8192, bottleneck=512, layers=3,
               ignore_diagonal=True)
  assert_holds(ours.ibot, weight=1.0, prototypes=98304, hidden=4096, bottleneck=384, layers=3)
  assert_holds(
      ours.model, patch_size=16, in_channels=3, width=4096, depth=40, num_heads=32, ffn="swiglu",
      ffn_ratio=3.0, ffn_align=64, qkv_bias=False, proj_bias=True, ffn_bias=True, mask_k_bias=True,
      norm="layernorm", norm_eps=1e-5, layerscale=1e-5, drop_path=0.4, storage_tokens=4,
      untie_cls_and_patch_norms=False, untie_global_and_local_cls_norm=True,
      rope=dict(base=100.0, min_period=None, max_period=None, normalize="separate", shift=None,
                jitter=None, rescale=2.0, dtype="float32"))
  assert ours.gram.teacher == "none"
  assert_holds(
      ours.optim, b1=0.9, b2=0.99, clip=30.0, lr_scaling="sqrt_wrt_1024", layerwise_decay=0.98,
      patch_embed_lr_mult=0.2, dino_head_wd_mult=1.0, freeze_last_layer_steps=5000)
  np.testing.assert_allclose(values(ours, "lr", 0, 50_000, 100_000, 999_999), [0, 2e-4, 4e-4, 4e-4],
                             rtol=1e-5)
  np.testing.assert_array_equal(values(ours, "last_layer_lr", 4999, 5000) > 0, [False, True])
  np.testing.assert_allclose(values(ours, "teacher_temp", 0, 50_000, 100_000, 999_999),
                             [0.04, 0.055, 0.07, 0.07], rtol=1e-5)
  np.testing.assert_allclose(values(ours, "momentum", 0, 999_999), 0.994)
  np.testing.assert_allclose(values(ours, "weight_decay", 0, 999_999), 0.04)
  np.testing.assert_array_equal(values(ours, "dino_local_weight", 0, 999_999), 1)
  assert ours.crops.global_sizes == (256,) and ours.crops.local_sizes == (112,)
  assert ours.crops.gram_sizes == (0,) and not ours.crops.horizontal_flip
  assert_holds(ours.checkpoint, every=1000, keep=3, keep_every=50_000)


def test_7b_gram_anchoring():
  ours = translate(GRAM_ANCHOR, world_size=256)
  assert_holds(
      ours.gram, teacher="own", init_from="", copy_ema_at=None, refresh_every=10_000,
      refresh_first=1_010_000, max_refreshes=3, normalized=True, image_level=True, tokens="all",
      negatives="keep", stats=False)
  assert ours.train.steps == 1_200_000 and ours.train.remat == "full"
  assert ours.crops.gram_sizes == (512,) and not ours.crops.gram_distortions
  np.testing.assert_allclose(
      values(ours, "gram_weight", 999_999, 1_000_500, 1_000_999, 1_199_999), [0, 1.0016, 2, 2],
      atol=1e-4)
  np.testing.assert_allclose(values(ours, "dino_local_weight", 0, 1_000_000, 1_000_999), [1, 1, .5])
  np.testing.assert_allclose(values(ours, "lr", 1_100_000), 2.4e-4, rtol=1e-5)
  np.testing.assert_allclose(values(ours, "momentum", 0), 0.999)


def test_7b_high_resolution():
  ours = translate(HIGH_RES, world_size=256)
  assert ours.train.batch_size == 2048 and ours.koleo.group == 16
  assert ours.train.steps == 30_000 and ours.optim.freeze_last_layer_steps == 0
  assert ours.gram.teacher == "own" and ours.gram.refresh_every == 0
  assert ours.gram.init_from == "runs/gram"
  crops = ours.crops
  assert crops.global_sizes == (512, 768, 768, 768, 768)
  assert crops.local_sizes == (112, 112, 168, 224, 336)
  assert crops.gram_sizes == (768, 1152, 1152, 1152, 1152)
  assert crops.size_weights == (.3, .3, .3, .05, .05)
  np.testing.assert_allclose(values(ours, "lr", 0, 9_999, 29_999), [0, 7.07e-5, 7.07e-5], rtol=1e-3)
  np.testing.assert_allclose(values(ours, "gram_weight", 0, 29_999), 1.5)
  np.testing.assert_allclose(values(ours, "dino_local_weight", 0, 29_999), 0.5)
  np.testing.assert_allclose(values(ours, "teacher_temp", 0, 29_999), 0.07)


def test_vitl_on_imagenet_is_the_base_config():
  """The official ImageNet recipe changes nothing that counts: it is the reference's defaults."""
  cfg = dict(train=dict(cache_dataset=True), student=dict(patch_drop=0.0),
             crops=dict(cell_augmentation=False), compute_precision=dict(param_dtype="bf16"),
             checkpointing=dict(period=3750, max_to_keep=3))
  ours, expected = translate(cfg, world_size=32), base.get_config()
  assert ours.gram.teacher == expected.gram.teacher == "none"
  assert (ours.train.steps, ours.train.batch_size) == (125_000, 2048)
  for section in ("model", "dino", "ibot", "masks", "koleo", "optim", "crops", "checkpoint"):
    assert ours[section].to_dict() == expected[section].to_dict()
  for name in expected.schedules:
    steps = range(0, 125_001, 2500)
    np.testing.assert_allclose(values(ours, name, *steps), values(expected, name, *steps),
                               rtol=1e-4)


def test_older_schedules():
  cfg = dict(optim=dict(epochs=10, lr=2e-3, min_lr=1e-5, warmup_epochs=2, weight_decay=0.1,
                        weight_decay_end=0.2, freeze_last_layer_epochs=3, schedule_trunc_extra=0.25,
                        scaling_rule="linear_wrt_256"),
             teacher=dict(momentum_teacher=0.99, final_momentum_teacher=0.999, teacher_temp=0.06,
                          warmup_teacher_temp=0.05, warmup_teacher_temp_epochs=5),
             train=dict(OFFICIAL_EPOCH_LENGTH=10, batch_size_per_gpu=32))
  ours = translate(cfg, world_size=4)
  assert ours.train.steps == 100 and ours.optim.freeze_last_layer_steps == 30
  np.testing.assert_allclose(values(ours, "lr", 0, 19, 20, 99, 100),
                             [0, 1e-3, 1e-3, 1e-5, 1e-5], rtol=1e-4)
  np.testing.assert_allclose(values(ours, "weight_decay", 0, 100), [0.1, 0.2], rtol=1e-6)
  np.testing.assert_allclose(values(ours, "momentum", 0, 100), [0.99, 0.999], rtol=1e-6)
  np.testing.assert_allclose(values(ours, "teacher_temp", 0, 49, 99), [0.05, 0.06, 0.06], rtol=1e-6)


@pytest.mark.parametrize("section, settings, path, expected", [
    ("student", dict(ffn_ratio=6), "model.ffn_ratio", 6.0),
    ("student", dict(in_chans=4), "model.in_channels", 4),
    ("student", dict(pos_embed_rope_dtype="fp32"), "model.rope.dtype", "float32"),
    ("student", {}, "model.rope.dtype", "bfloat16"),
    ("student", dict(arch="vit_so400m"), "model.ffn_ratio", 3.777777778),
    ("student", dict(layerscale=None), "model.layerscale", 0.0),
    ("student", dict(norm_layer="rmsnorm"), "model.norm", "rmsnorm"),
    ("student", dict(norm_layer="layernormbf16"), "model.norm_eps", 1e-5),
    ("student", dict(ffn_layer="swiglu128"), "model.ffn_align", 128),
    ("student", dict(pos_embed_rope_base=50), "model.rope.base", 50.0),
    ("student", dict(pos_embed_rope_min_period=1.0, pos_embed_rope_max_period=9.0,
                     pos_embed_rope_base=None), "model.rope.base", 0.0),
    ("student", dict(pos_embed_rope_jitter_coords=1.5), "model.rope.jitter", 1.5),
    ("student", dict(pos_embed_rope_shift_coords=1), "model.rope.shift", 1.0),
    ("dino", dict(global_ignore_diagonal=False), "dino.ignore_diagonal", False),
    ("dino", dict(koleo_loss_distributed=True), "koleo.group", 128),
    ("dino", dict(koleo_loss_distributed=True, koleo_topk=2), "koleo.topk", 2),
    ("ibot", dict(mask_ratio_min_max=[.2, .4]), "masks.ratio", (.2, .4)),
    ("ibot", dict(mask_random_circular_shift=True), "masks.circular_shift", True),
    ("gram", dict(use_loss=True, ema_teacher=True), "gram.teacher", "ema"),
    ("gram", dict(use_loss=True, ckpt="ignore"), "gram.teacher", "own"),
    ("gram", dict(use_loss=True), "gram.image_level", False),
    ("gram", dict(use_loss=True, it_load_ema_teacher=500), "gram.copy_ema_at", 500),
    ("gram", dict(remove_neg=True), "gram.negatives", "remove"),
    ("gram", dict(remove_only_teacher_neg=True), "gram.negatives", "remove_teacher_only"),
    ("gram", dict(tokens_used="masked"), "gram.tokens", "masked"),
    ("optim", dict(dino_head_wd_multiplier=5.0), "optim.dino_head_wd_mult", 5.0),
    ("crops", dict(localcrops_subset_of_globalcrops=True), "crops.locals_from_globals", True),
    ("crops", dict(rgb_mean=[.1, .2, .3]), "crops.mean", (.1, .2, .3)),
    ("compute_precision", {}, "train.dtype", "float32"),
    ("compute_precision", dict(param_dtype="bf16"), "train.dtype", "bfloat16"),
    ("evaluation", dict(eval_period_iterations=77), "evals.every", 77),
])
def test_single_settings(section, settings, path, expected):
  value = translate({section: settings}, world_size=2)
  for key in path.split("."):
    value = value[key]
  assert value == expected


def test_sizes_in_place_of_the_architectures():
  ours = config({}, width=64, depth=3)
  assert (ours.model.width, ours.model.depth, ours.model.num_heads) == (64, 3, 16)
  ours = config(dict(student=dict(arch="vit_tiny")), width=64, depth=3, num_heads=2)
  assert ours.model.num_heads == 2 and ours.is_locked


def test_keys_without_effect_are_named_in_one_warning():
  cfg = dict(MODEL=dict(DEVICE="cuda"), hrft=dict(enabled=False), student=dict(fp8_enabled=False),
             dino=dict(force_weight_norm=False), optim=dict(optimizer="adamw"))
  with pytest.warns(UserWarning) as caught:
    config(cfg)
  assert len(caught) == 1
  message = str(caught[0].message)
  assert message.startswith("settings without effect: ")
  assert set(message.partition(": ")[2].split(", ")) == {
      "MODEL", "hrft", "student.fp8_enabled", "dino.force_weight_norm", "optim.optimizer"}
  assert caught[0].filename == __file__


def test_no_warning_without_need():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    config(EMPTY)


@pytest.mark.parametrize("cfg, named", [
    (dict(student=dict(drop_path=0.1)), "unknown settings: student.drop_path;"),
    (dict(students={}), "unknown settings: students;"),
    (dict(optim=dict(lrr=1, epoch=2), crops=dict(size=3)),
     "unknown settings: optim.epoch, optim.lrr, crops.size;"),
    (merge(PRETRAIN, dict(schedules=dict(wd=schedule(0, 0, 0)))), "unknown settings: schedules.wd"),
    (merge(PRETRAIN, dict(schedules=dict(lr=dict(warmup=3)))),
     "unknown settings: schedules.lr.warmup"),
    (dict(train=dict(centering="centering")),
     "train.centering='centering' is not supported; use one of sinkhorn_knopp"),
    (dict(student=dict(ffn_layer="moe")), "student.ffn_layer='moe' is not supported"),
    (dict(student=dict(arch="vit_tiny")), "student.arch='vit_tiny' is not one of vit_small"),
    (dict(ibot=dict(separate_head=False)), "ibot.separate_head=False is not supported"),
    (dict(gram=dict(remove_neg=True, remove_only_teacher_neg=True)), "exclude each other"),
    (dict(dino=dict(reweight_dino_local_loss=True)), "needs dino.local_loss_weight_schedule"),
    (dict(schedules=dict(lr=schedule(0, 1, 1))), "schedules.weight_decay is missing"),
    (dict(multidistillation=dict(enabled=True, students=[dict(name="a", ranks_range=[0, 1])])),
     "multidistillation.students are a: say which of them"),
    (dict(student=dict(arch="convnext_mini")), "is not one of convnext_tiny"),
    (dict(crops=dict(teacher_to_student_resolution_scale=2.0)),
     "crops.teacher_to_student_resolution_scale=2.0 is not supported"),
])
def test_errors(cfg, named):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with pytest.raises(ValueError) as error:
      config(cfg)
  assert named in str(error.value) and "\n" not in str(error.value)
