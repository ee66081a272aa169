import functools
import importlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from configs import base
from dinov3_jax.costs.flops import CHIPS, step_flops
from dinov3_jax.models import variants
from dinov3_jax.train import inputs, sharding
from dinov3_jax.train.schedules import make_schedule, make_schedules
from dinov3_jax.train.state import init_state
from dinov3_jax.train.step import gram_refresh_due, make_train_step

FOLDER = Path(base.__file__).parent
# Parameters of the backbone, mask token included, as the reference counts them. Its ViT-L recipe
# has no storage tokens, unlike the released ViT-L: 4 x 1,024 less.
BACKBONES = dict(vitt16=5_492_160, vits16=21_601_152, vits16_gram=21_601_152,
                 vits16_highres=21_601_152, vits16plus=28_697_472,
                 vitl16plus=403_915_776, vith16plus=840_633_600, vitb16=85_669_632,
                 vitl16_in1k=303_154_176 - 4 * 1024, vit7b=6_716_043_264, vit7b_gram=6_716_043_264,
                 vit7b_highres=6_716_043_264)
# Hidden width, bottleneck and prototypes of the DINO and the iBOT head.
HEADS = {name: ((2048, 256, 65_536),) * 2 for name in (
  "vitt16", "vits16", "vits16_gram", "vits16_highres", "vits16plus", "vitb16", "vitl16_in1k",
  "vitl16plus", "vith16plus")} | {
  name: ((8192, 512, 262_144), (4096, 384, 98_304))
  for name in ("vit7b", "vit7b_gram", "vit7b_highres")}
# foreign_heads needs the name of a network, and those of text have settings of their own; they have
# test files of their own.
NAMES = sorted({path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("dinotxt")}
               - {"__init__", "base", "foreign_heads"})


def config_of(name: str) -> ConfigDict:
  return importlib.import_module(f"configs.{name}").get_config()


@functools.cache
def state_of(name: str):
  return jax.eval_shape(functools.partial(init_state, config_of(name)))


def count(tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_the_settings_of_the_base_and_no_others(name):
  config = config_of(name)
  keys, expected = (flatten_dict(c.to_dict()).keys() for c in (config, base.get_config()))
  keys = {key for key in keys if key[0] != "students"}  # whose settings test_distill looks at
  assert config.is_locked and keys == expected


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_parameter_counts(name):
  student = state_of(name).student
  assert count(student["backbone"]) == BACKBONES[name]
  width = config_of(name).model.width
  for head, (hidden, bottleneck, prototypes) in zip(("dino_head", "ibot_head"), HEADS[name]):
    layers = [(width, hidden), (hidden, hidden), (hidden, bottleneck)]
    expected = sum(n * m + m for n, m in layers) + bottleneck * prototypes
    assert count(student[head]) == expected
  assert count(state_of(name).teacher) == count(student)


@pytest.mark.parametrize("name", ["vits16", "vits16plus", "vitb16", "vitl16plus", "vith16plus"])
def test_networks_are_those_of_the_released_family(name):
  model = config_of(name).model.to_dict()
  released = variants.variant(name).settings
  assert variants.differences(released, model) == []


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_header_has_the_command_and_the_computed_cost(name):
  """Of 64 images a data shard, without what stochastic depth skips, averaged over resolutions."""
  header = importlib.import_module(f"configs.{name}").__doc__
  assert f"python -m dinov3_jax.main --config=configs/{name}.py --workdir=runs/{name}" in header
  assert "not been run" in " ".join(header.split())
  config = config_of(name)
  share, count = config.crops.size_weights, config.train.batch_size // 64
  flops = sum(w * step_flops(config, count, i).executed for i, w in enumerate(share))
  hours = flops * config.train.steps / (0.4 * CHIPS["NVIDIA H100 80GB HBM3"].flops) / 3600
  text = " ".join(header.split())
  assert f"{flops / 1e12:,.0f} TFLOP a step" in text
  assert f"{hours:,.0f} H100-hours at 40 % of the peak" in text


def test_the_docs_list_every_recipe_with_its_steps():
  text = (FOLDER.parent / "docs" / "recipes.md").read_text()
  found = re.findall(r"^\| \[`(\w+)`\]\(\.\./configs/\1\.py\) \|.*\| ([\d,]+) \W ([\d,]+) \|$",
                     text, re.MULTILINE)
  rows = {name: numbers for name, *numbers in found}
  assert set(rows) == {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "base"}
  for name, row in rows.items():
    train = config_of(name).train
    assert row == [f"{train.steps:,}", f"{train.batch_size:,}"], name


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_that_are_kept_are_written(name):
  checkpoint = config_of(name).checkpoint
  assert checkpoint.keep_every % checkpoint.every == 0


def test_head_sizes_as_published():
  millions = lambda name, head: round(count(state_of(name).student[head]) / 1e6, 1)
  assert millions("vitl16_in1k", "dino_head") == millions("vitl16_in1k", "ibot_head") == 23.6
  assert (millions("vit7b", "dino_head"), millions("vit7b", "ibot_head")) == (239.1, 72.9)


@pytest.mark.parametrize("name", NAMES)
def test_every_resolution_of_a_recipe_makes_a_step(name):
  config, state = config_of(name).copy_and_resolve_references(), state_of(name)
  config.mesh.update(data=1, fsdp=1)
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  sharding.state_sharding(mesh, state)  # its rules cover every parameter
  inputs.open_pipeline(config, range(10), mesh)  # takes the crops, with no image read

  step = make_train_step(config)
  for i in range(len(config.crops.global_sizes)):
    new, metrics = jax.eval_shape(step, state, sharding.abstract_batch(config, mesh, i))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
      lambda x: (x.shape, x.dtype), state)
    assert {metric.shape for metric in metrics.values()} == {()}
    assert ("gram_loss" in metrics) == (config.gram.teacher != "none")


@pytest.mark.parametrize("model", ["vit7b", "vits16"])
def test_each_stage_starts_from_the_one_before(model):
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  for before, name in ((model, f"{model}_gram"), (f"{model}_gram", f"{model}_highres")):
    assert config_of(name).init_from == f"runs/{before}"
    assert f"--workdir=runs/{before}" in (FOLDER / f"{before}.py").read_text().split()
    assert shapes(state_of(name).teacher) == shapes(state_of(before).teacher)
    assert config_of(name).model == config_of(before).model
    assert shapes(state_of(name).gram_teacher["backbone"]) == shapes(
      state_of(before).teacher["backbone"])


def test_learning_rates_as_published():
  at = lambda name, step: float(make_schedules(config_of(name))["lr"](step))
  assert at("vitl16_in1k", 12_500) == pytest.approx(1e-3 * 4 * 2**0.5, rel=1e-3)
  assert at("vit7b", 500_000) == pytest.approx(4e-4)
  assert at("vit7b_gram", 0) == at("vit7b_gram", 199_999) == pytest.approx(2.4e-4)
  assert at("vit7b_highres", 0) == 0
  assert at("vit7b_highres", 29_999) == pytest.approx(7.07e-5, rel=1e-3)


@pytest.mark.parametrize("name, values", [("dino_local_weight", (1.0, 1.0, 0.5)),
                                          ("gram_weight", (0.0, 0.0, 2.0))])
def test_gram_stage_has_the_schedules_of_the_reference_a_million_steps_later(name, values):
  reference = make_schedule("warmup_cosine", *values, warmup_steps=1_000_000, cosine_steps=1000,
                            trunc_extra=0.0, total_steps=1_200_000)
  ours = make_schedules(config_of("vit7b_gram"))[name]
  steps = np.array([0, 1, 250, 500, 999, 1000, 199_999])
  np.testing.assert_allclose(ours(steps), reference(steps + 1_000_000), atol=1e-6)


def test_gram_teacher_is_refreshed_three_times():
  gram = config_of("vit7b_gram").gram
  due = [done for done in range(1000, 200_001, 1000)
         if gram_refresh_due(done, gram.refresh_every, gram.refresh_first, gram.max_refreshes)]
  assert due == [10_000, 20_000, 30_000]
  assert not config_of("vit7b_highres").gram.refresh_every
