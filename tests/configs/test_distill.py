"""The recipes `distill.py` and `distill_family.py`."""

import functools

import jax
import pytest
from flax.traverse_util import flatten_dict

from configs import base, distill, distill_family, vit7b_highres
from dinov3_jax.costs.flops import step_flops, targets_flops
from dinov3_jax.models.variants import VARIANTS, differences
from dinov3_jax.train import family, sharding, targets
from dinov3_jax.train.settings import check_settings
from dinov3_jax.train.state import abstract_modules, init_state
from dinov3_jax.train.step import make_train_step

STUDENTS = sorted(set(VARIANTS) - {"vit7b16"})
TEACHER = vit7b_highres.get_config()


def keys_of(config):
  return flatten_dict(config.to_dict()).keys()


@pytest.mark.parametrize("name", STUDENTS)
def test_every_student_of_the_table_has_a_recipe(name):
  """Its network is the table's, and it can learn from the 7B."""
  config, expected = distill.get_config(name), base.get_config()
  check_settings(config)
  assert not differences(config.model.to_dict(), VARIANTS[name].settings)
  targets.check_student(config, TEACHER)
  if "depths" in config.model:
    with expected.unlocked():
      expected.model = base.convnext((1,) * 4, (1,) * 4)
  assert config.is_locked and keys_of(config) == keys_of(expected)


@pytest.mark.parametrize("name", ["vits16", "convnext_tiny"])
def test_a_student_takes_a_step_on_what_the_7b_makes_of_its_crops(name):
  config = distill.get_config(name)
  batch = sharding.abstract_batch(config, sharding.make_mesh(config, jax.devices()[:1]))
  made = jax.eval_shape(targets.make_targets(config, TEACHER), abstract_modules(TEACHER)[1], batch)
  assert made["cls"].shape == (4096, 2, 512) and made["patches"].shape == (4096, 2, 256, 384)
  state = jax.eval_shape(functools.partial(init_state, config))
  new, metrics = jax.eval_shape(make_train_step(config), state, batch | dict(targets=made))
  assert jax.tree.structure(new) == jax.tree.structure(state) and metrics["loss"].shape == ()


@pytest.mark.parametrize("names", [
  distill_family.VITS, "convnext_tiny,convnext_small,convnext_base,convnext_large", "vitb16"])
def test_a_family_is_of_the_recipes_of_one(names):
  configs = family.members(distill_family.get_config(names))
  assert set(configs) == set(names.split(","))
  family.check_family(configs, TEACHER)
  for name, each in configs.items():
    assert each.to_dict() == distill.get_config(name).to_dict()


def test_what_the_headers_say_of_the_cost():
  petaflop = lambda name: step_flops(distill.get_config(name), 128, 0, TEACHER).full / 1e15
  teacher = targets_flops(distill.get_config("vits16"), TEACHER) / 1e15
  names = ("vits16", "vitb16", "vitl16", "vith16plus", "convnext_tiny", "convnext_large")
  figures = [teacher, *map(petaflop, names)]
  said = [f"{figure:.1f}" for figure in figures]
  header = " ".join(distill.__doc__.split())
  assert all(figure in header for figure in said) and said[0] == "29.2"
  hours = lambda flops: flops * 1e15 * distill.STEPS / (0.4 * 459e12) / 3600
  assert round(hours(teacher + figures[1]), -3) == 28_000
  students = sum(map(petaflop, distill_family.VITS.split(",")))
  assert f"{students + teacher:.1f} PFLOP" in " ".join(distill_family.__doc__.split())
  assert round(hours(students + teacher), -3) == 57_000
  assert round(hours(students + 5 * teacher), -3) == 168_000
