import importlib
import re
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict

from configs import base, distill
from dinov3_jax.train import settings
from dinov3_jax.train.settings import check_settings

# Those of dino.txt have settings of their own, which `text.settings` checks.
RECIPES = sorted({path.stem for path in Path(base.__file__).parent.glob("*.py")
                  if not path.stem.startswith("dinotxt")} - {"__init__"})


def problems(config=None, **changes) -> list[str]:
  """What is wrong with settings: each part of the one line."""
  config = config or base.get_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError) as caught:
    check_settings(config)
  assert "\n" not in str(caught.value)
  return str(caught.value).split("; ")


def passes(**changes):
  config = base.get_config()
  config.update_from_flattened_dict(changes)
  check_settings(config)


def like(key, value):
  """A value in the type of a setting, which configs insist on."""
  return type(settings._get(base.get_config(), key))(value)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_passes(name):
  check_settings(importlib.import_module(f"configs.{name}").get_config())


@pytest.mark.parametrize("key", [*settings.POSITIVE, *settings.EVALUATION])
def test_counts_are_at_least_one(key):
  for value in (0, -3):
    assert f"{key} must be at least 1, not {value}" in problems(**{key: value})


def test_one_is_enough_of_every_count():
  one = {key: 1 for key in settings.POSITIVE if key != "train.steps"}
  passes(**one, **{key: 1 for key in settings.EVALUATION})


@pytest.mark.parametrize("key", settings.NOT_NEGATIVE)
def test_what_may_be_nothing_is_not_negative(key):
  passes(**{key: like(key, 0)})
  low = like(key, -1)
  assert problems(**{key: low}) == [f"{key} must not be negative, not {low}"]


@pytest.mark.parametrize("key", settings.SHARES)
def test_shares_include_nothing_and_all(key):
  for value in (0.0, 1.0):
    passes(**{key: value})
  for value in (-0.01, 1.01):
    assert problems(**{key: value}) == [f"{key} must be a share from 0 to 1, not {value}"]


@pytest.mark.parametrize("key", settings.BELOW_ONE)
def test_one_itself_is_too_much(key):
  passes(**{key: 0.0})
  for value in (-0.1, 1.0):
    assert problems(**{key: value}) == [f"{key} must be at least 0 and below 1, not {value}"]


NUMBERS = sorted(key for key, value in flatten_dict(base.get_config().to_dict(), sep=".").items()
                 if isinstance(value, float))
LISTS = sorted(key for key, value in flatten_dict(base.get_config().to_dict(), sep=".").items()
               if isinstance(value, tuple))


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_is_finite(key):
  for value in (float("nan"), float("inf")):
    assert problems(**{key: value}) == [f"{key} must be finite, not {value}"]


@pytest.mark.parametrize("key", sorted(set(LISTS) - {*settings.SIZES, *settings.WORDS}))
def test_every_list_is_of_finite_numbers(key):
  value = settings._get(base.get_config(), key)
  assert problems(**{key: (*value[1:], "a")})[0].startswith(f"{key} must be ")
  assert problems(**{key: (*value[1:], float("nan"))})[0].startswith(f"{key} must be finite, not ")
  if key in settings.LENGTHS:
    for other in ((), value[1:], value + value):
      assert problems(**{key: other}) == [f"{key} must be {len(value)} numbers, not {other}"]


@pytest.mark.parametrize("key", settings.ABOVE_ZERO)
def test_zero_itself_is_too_little(key):
  for value in (0.0, -1.0):
    assert problems(**{key: value}) == [f"{key} must be above 0, not {value}"]


def test_images_are_divided_by_something():
  assert problems(**{"crops.std": (0.2, 0.0, 0.2)}) == [
    "crops.std must be above 0, not (0.2, 0.0, 0.2)"]


@pytest.mark.parametrize("key, good, bad", [
  ("optim.clip", (1e-6, 1e9), (0.0, -1.0)),
  ("optim.layerwise_decay", (1e-6, 1.0), (0.0, 1.5, -0.5))])
def test_what_must_be_above_zero(key, good, bad):
  for value in good:
    passes(**{key: value})
  for value in bad:
    (problem,) = problems(**{key: value})
    assert problem.startswith(f"{key} must be above 0") and f"not {value}" in problem


@pytest.mark.parametrize("key, value, said", [
  ("train.dtype", "float12", "float32, bfloat16 or float16, not 'float12'"),
  ("checkpoint.on_error", "panic", "continue or stop, not 'panic'"),
  ("model.in_channels", 1, "3, not 1: the images are RGB"),
  ("gram.teacher", "ours", "none, ema or own, not 'ours'")])
def test_a_choice_that_there_is_not(key, value, said):
  assert problems(**{key: value}) == [f"{key} must be {said}"]


def test_lists_of_crops_have_an_entry_a_resolution():
  passes(**{"crops.global_sizes": (224, 256), "crops.local_sizes": (96, 112),
            "crops.gram_sizes": (0, 0), "crops.size_weights": (0.5, 0.5)})
  for key in ("global_sizes", "local_sizes", "gram_sizes", "size_weights"):
    two = like(f"crops.{key}", getattr(base.get_config().crops, key) * 2)
    assert problems(**{f"crops.{key}": two}) == [
      "crops.global_sizes, local_sizes, gram_sizes, size_weights must be of one length, an entry a "
      "resolution"]
  none = {f"crops.{key}": () for key in ("global_sizes", "local_sizes", "gram_sizes",
                                         "size_weights")}
  assert "must be of one length, an entry a resolution" in problems(**none)[0]


@pytest.mark.parametrize("key", ["global_sizes", "local_sizes", "gram_sizes"])
def test_sizes_of_crops_are_whole_numbers(key):
  assert problems(**{f"crops.{key}": ("abc",)}) == [
    f"crops.{key} must be whole numbers of pixels, not ('abc',)"]
  assert problems(**{f"crops.{key}": (96.5,)}) == [
    f"crops.{key} must be whole numbers of pixels, not (96.5,)"]


@pytest.mark.parametrize("teacher, sizes, fits", [
  ("none", (0,), True), ("ema", (0,), True), ("own", (256,), True), ("own", (0,), True),
  ("none", (256,), False), ("ema", (256,), False)])
def test_gram_crops_are_for_a_teacher_of_its_own(teacher, sizes, fits):
  changes = {"gram.teacher": teacher, "crops.gram_sizes": sizes}
  if fits:
    passes(**changes)
  else:
    (problem,) = problems(**changes)
    assert problem.startswith(f"gram.teacher={teacher!r} does not go with crops.gram_sizes={sizes}")


def test_a_gram_teacher_has_crops_of_its_own_at_all_resolutions_or_at_none():
  two = {f"crops.{key}": value for key, value in dict(
    global_sizes=(224, 256), local_sizes=(96, 112), size_weights=(0.5, 0.5)).items()}
  own = {"gram.teacher": "own"}
  for sizes in ((0, 0), (448, 512)):
    passes(**two, **own, **{"crops.gram_sizes": sizes})
  (problem,) = problems(**two, **own, **{"crops.gram_sizes": (448, 0)})
  assert problem.endswith("needs them at all resolutions or, with sizes of 0, at none")


def test_features_are_preserved_where_there_is_a_frozen_network():
  weight = {"cls_preservation.weight": 1.0}
  passes(**weight, **{"gram.teacher": "own"})
  for teacher in ("none", "ema"):
    (problem,) = problems(**weight, **{"gram.teacher": teacher})
    assert problem.startswith("cls_preservation.weight=1.0 needs") and "gram.teacher=own" in problem


def test_a_backbone_waits_for_a_part_of_the_run_or_for_all_of_it():
  freeze, ramp = "optim.freeze_backbone_steps", "optim.ramp_backbone_steps"
  for steps in (-1, 0, 1000):
    passes(**{freeze: steps})
  passes(**{ramp: 1000})
  assert problems(**{freeze: -2})[0].startswith(f"{freeze} must not be below -1, not -2")
  assert problems(**{freeze: -1, ramp: 5})[0].startswith(f"{ramp}=5 comes after a frozen phase")
  assert problems(**{freeze: 125_000})[0].startswith(
    f"{freeze}=125000 leaves the backbone none of train.steps=125000: lower it, or set it to -1")


@pytest.mark.parametrize("key, value", [("general", "openmoji"), ("best", "knn_top1")])
def test_what_is_said_of_evaluations_needs_some(key, value):
  passes(**{f"evals.{key}": value})
  (problem,) = problems(**{f"evals.{key}": value, "evals.every": 0})
  assert problem.startswith(f"evals.{key}={value!r} is ") and "set evals.every, too" in problem


@pytest.mark.parametrize("key", ["image_size", "picture_size"])
def test_sizes_of_evaluations_are_multiples_of_the_patch(key):
  assert problems(**{f"evals.{key}": 230}) == [
    f"evals.{key} 230 is not a multiple of the patch size 16"]
  passes(**{f"evals.{key}": 230, "evals.every": 0})


def test_a_run_anchors_itself_or_takes_another_teacher():
  own = {"gram.teacher": "own", "crops.gram_sizes": (256,)}
  for start in (0, 5000, 124_999):
    passes(**own, **{"gram.start_at": start})
    passes(**{"gram.teacher": "ema", "gram.start_at": start})
  for start in (-1, 125_000):
    assert problems(**own, **{"gram.start_at": start})[0] == (
      f"gram.start_at must be a step from 0 to train.steps - 1, not {start}")
  for key, value in {"gram.init_from": "runs/a", "gram.copy_ema_at": 3}.items():
    assert problems(**own, **{"gram.start_at": 5, key: value}) == [
      "gram.start_at=5 takes the run's own EMA teacher: leave out gram.copy_ema_at and "
      "gram.init_from, or gram.start_at"]
  assert problems(**{"gram.start_at": 5})[0].startswith("gram.start_at=5 needs a teacher")


def test_settings_of_evaluations_matter_only_where_there_are_any():
  passes(**{"evals.every": 0, **{key: -1 for key in settings.EVALUATION}})


@pytest.mark.parametrize("name", list(base.get_config().schedules))
def test_schedules_have_values_that_mean_something(name):
  share = name == "momentum"
  for key in ("start", "peak", "end"):
    said = "must be from 0 to 1" if share else "must not be negative"
    for value in (-0.5, *([1.5] if share else [])):
      assert f"schedules.{name}.{key} {said}, not {value}" in problems(
        **{f"schedules.{name}.{key}": value})
  assert problems(**{f"schedules.{name}.trunc_extra": -0.5}) == [
    f"schedules.{name}.trunc_extra must not be negative, not -0.5"]
  assert problems(**{f"schedules.{name}.warmup_steps": -1}) == [
    f"schedules.{name} has a negative number of steps"]
  assert problems(**{f"schedules.{name}.cosine_steps": -1}) == [
    f"schedules.{name} has a negative number of steps"]


def test_the_teacher_needs_a_temperature():
  assert problems(**{"schedules.teacher_temp.peak": 0.0}) == [
    "schedules.teacher_temp.peak must be above 0"]


def test_schedules_that_do_not_fit_are_told_with_the_rest():
  config = base.get_config()
  config.train.steps = 1000
  said = problems(config, **{"optim.b1": 1.0})
  assert len(said) == 2 and said[0].startswith("optim.b1 ")
  assert said[1].startswith("train.steps=1000 is too short for schedules.lr.warmup_steps=12500, ")


def test_all_that_is_wrong_is_told_at_once():
  said = problems(**{"train.steps": 0, "checkpoint.keep": 0, "data.workers": -1, "optim.b2": 2.0,
                     "train.dtype": "int8", "crops.global_sizes": (224, 256)})
  assert [re.match(r"[\w.]+", problem)[0] for problem in said] == [
    "train.steps", "checkpoint.keep", "data.workers", "optim.b2", "train.dtype",
    "crops.global_sizes"]


def test_attention_that_is_unknown_or_of_another_dtype():
  assert problems(**{"train.attention": "flash"}) == [
    "train.attention must be auto, xla or cudnn, not 'flash'"]
  passes(**{"train.attention": "cudnn"})
  said, = problems(**{"train.attention": "cudnn", "train.dtype": "float32"})
  assert "computes in bfloat16 or float16, not in train.dtype='float32'" in said


def test_products_of_an_unknown_kind_or_of_a_network_without_blocks():
  assert problems(**{"train.matmul": "fp4"}) == [
    "train.matmul must be fp8, int8 or nothing, not 'fp4'"]
  passes(**{"train.matmul": "fp8"})
  config = distill.get_config("convnext_tiny")
  config.train.matmul = "int8"
  with pytest.raises(ValueError, match=r"train\.matmul='int8' is for the blocks of a ViT"):
    check_settings(config)
