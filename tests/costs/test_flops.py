import math

import jax
import jax.extend
import pytest

from configs import base
from dinov3_jax.costs.flops import flops_by_crops, step_flops, targets_flops
from dinov3_jax.models.variants import stride
from dinov3_jax.train import sharding
from dinov3_jax.train.state import abstract_modules, init_state
from dinov3_jax.train.step import make_train_step
from dinov3_jax.train.targets import make_targets, teacher_crops


def traced_flops(config):
  """Those of the matrix products that the step asks for, rounds of loops included."""
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  state = jax.eval_shape(lambda: init_state(config))
  batch = sharding.abstract_batch(config, mesh)
  return products(jax.make_jaxpr(make_train_step(config))(state, batch))


def products(program):
  """Operations of a program's matrix products."""

  def count(jaxpr):
    total = 0
    for eqn in jaxpr.eqns:
      if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        x, out = eqn.invars[0].aval, eqn.outvars[0].aval
        total += 2 * math.prod(out.shape) * math.prod(x.shape[i] for i in contracted)
      inner = sum(map(count, jax.extend.core.jaxprs_in_params(eqn.params)))
      total += inner * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
    return total

  return count(program.jaxpr)


@pytest.fixture
def config(tiny_config):
  """Large enough that the small products, such as KoLeo's, do not show."""
  tiny_config.model.update(width=128, num_heads=4)
  tiny_config.train.update(batch_size=16, remat="none")
  tiny_config.dino.update(prototypes=512, hidden=96)
  return tiny_config


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("gram", ["none", "own"])
def test_as_the_step_asks_for(config, ffn, gram):
  config.model.update(ffn=ffn, drop_path=0.4)
  if gram == "own":
    config.gram.teacher = gram
    config.crops.gram_sizes = (64,)
  assert step_flops(config, 1).executed == pytest.approx(traced_flops(config), rel=0.02)


def test_full_counts_the_rows_that_drop_path_skips(config):
  full = step_flops(config, 1)
  assert full.full == full.executed
  config.model.drop_path = 0.4
  assert step_flops(config, 1).full == full.full
  assert step_flops(config, 1).executed < 0.8 * full.full
  # Sixteen images are 32 and 48 crops: 19 and 28 go through a block, of 8 shards' 4 and 6 it is 2
  # and 3.
  assert step_flops(config, 8).executed < step_flops(config, 1).executed


def test_every_resolution_is_counted_for_itself(config):
  config.crops.update(global_sizes=(32, 64), local_sizes=(16, 16), gram_sizes=(0, 0))
  small, large = (step_flops(config, 1, i).full for i in range(2))
  assert 2 * small < large < 8 * small


def test_the_7b_model():
  from configs import vit7b
  config = vit7b.get_config()
  flops = step_flops(config, 256)
  # Twice the parameters of the blocks for each token and pass, of three in the student and one in
  # the teacher; attention and heads on top.
  tokens = 4096 * (3 * (2 * 261 + 8 * 54) + 2 * 261)
  assert 2 * 6.7e9 * tokens < flops.full < 1.1 * 2 * 6.7e9 * tokens


@pytest.fixture
def convnext(config):
  with config.unlocked():
    config.model = base.convnext((1, 2, 1, 1), (32, 48, 64, 96))
  config.crops.update(global_sizes=(64,), local_sizes=(32,))
  return config


def teacher_of(config):
  teacher = config.copy_and_resolve_references()
  with teacher.unlocked():
    teacher.model = base.get_config().model
  teacher.model.update(width=96, depth=2, num_heads=4, patch_size=8)
  teacher.dino.update(hidden=80, bottleneck=24)
  return teacher


@pytest.mark.parametrize("network", ["vit", "convnext"])
def test_of_a_student_and_of_its_teacher(config, request, network):
  """Depthwise convolutions, and making the crops smaller, are left out on both sides."""
  config = request.getfixturevalue("convnext") if network == "convnext" else config
  teacher = teacher_of(config)
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  batch = sharding.abstract_batch(config, mesh)
  targets = make_targets(config, teacher)
  params = abstract_modules(teacher)[1]
  made = jax.eval_shape(targets, params, batch)
  state = jax.eval_shape(lambda: init_state(config))
  counted = products(jax.make_jaxpr(make_train_step(config))(state, batch | dict(targets=made)))
  assert step_flops(config, 1, teacher=teacher).executed == pytest.approx(counted, rel=0.02)
  crops = jax.ShapeDtypeStruct((32, *batch["global_crops"].shape[2:]), "float32")
  resizing = jax.make_jaxpr(lambda x: teacher_crops(x, 8, stride(config.model)))(crops)
  counted = products(jax.make_jaxpr(targets)(params, batch)) - products(resizing)
  assert targets_flops(config, teacher) == pytest.approx(counted, rel=0.03)
  (both,) = flops_by_crops([config, config], 1, teacher).values()
  assert both.full == pytest.approx(2 * step_flops(config, 1, teacher=teacher).full
                                    + targets_flops(config, teacher))
