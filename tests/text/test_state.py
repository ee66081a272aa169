import jax
import numpy as np
import pytest

from dinov3_jax.text.networks import abstract_modules, from_official_tree, official_tree
from dinov3_jax.text.state import init_state, make_schedules, param_groups
from dinov3_jax.weights import naming


@pytest.fixture(scope="module")
def run(recording):
  return recording("dinotxt")


def test_what_does_not_decay_is_what_the_reference_leaves_out(run):
  shapes = abstract_modules(run.config, run.backbone)[1]
  groups = param_groups(shapes)
  full = jax.tree.map(lambda p, g: np.full(p.shape, g.weight_decay, np.float32), shapes, groups)
  for name, x in naming.flatten(official_tree(full)).items():
    assert np.all(x == float(name not in run.record["no_decay"])), name


def test_a_fresh_state_has_the_parameters_that_its_shapes_say(run):
  state = jax.jit(lambda: init_state(run.config, run.backbone))()
  expected = abstract_modules(run.config, run.backbone)[1]
  chosen = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert chosen(state.student) == chosen(expected)
  np.testing.assert_allclose(np.exp(state.student["logit_scale"]), 1 / 0.07, rtol=1e-6)
  assert state.step == 0


def test_a_schedule_longer_than_the_run_is_named(run):
  config = run.config.copy_and_resolve_references()
  config.schedules.lr.warmup_steps = 100
  with pytest.raises(ValueError, match=r"schedules\.lr: .*100 warm-up"):
    make_schedules(config)


def test_official_names_lead_back_to_the_same_tree(run):
  tree = from_official_tree(official_tree(run.student))
  assert jax.tree.structure(tree) == jax.tree.structure(run.student)
  arrays = run.named(run.student)
  assert set(arrays) == set(run.record["digest"])
