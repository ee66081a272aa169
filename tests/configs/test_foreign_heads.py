"""The recipe `foreign_heads.py`."""

import jax
import pytest
from flax.traverse_util import flatten_dict

from configs import base, distill, foreign_heads
from dinov3_jax.models.callables import Misfit
from dinov3_jax.train import prepare, sharding, targets
from dinov3_jax.train.settings import check_settings
from dinov3_jax.train.state import init_state
from dinov3_jax.train.step import make_train_step
from tests import strangers


def test_it_has_the_settings_of_the_base_but_for_the_model():
  config = foreign_heads.get_config()
  keys = lambda c: {key for key in flatten_dict(c.to_dict()) if key[0] != "model"}
  assert config.is_locked and keys(config) == keys(base.get_config())
  assert config.checkpoint.keep_every % config.checkpoint.every == 0
  check_settings(config)


def test_settings_follow_the_network(tmp_path):
  path = strangers.save_dinov2(tmp_path)
  config = foreign_heads.get_config(f"transformers:{path}")
  check_settings(config)
  assert (config.model.width, config.model.patch_size, config.model.host) == (12, 8, True)
  assert (config.crops.global_sizes, config.crops.local_sizes) == ((112,), (48,))
  config = foreign_heads.get_config("tests.strangers:pixels")
  assert (config.model.width, config.model.host) == (12, False)
  assert config.crops.mean == (0.5, 0.5, 0.5)


def test_it_makes_a_step_and_teaches_as_many_prototypes():
  config = foreign_heads.get_config("tests.strangers:pixels")
  mesh = sharding.make_mesh(config, jax.devices()[:1])
  state = jax.eval_shape(lambda: init_state(config))
  new, metrics = jax.eval_shape(make_train_step(config), state,
                                sharding.abstract_batch(config, mesh))
  assert jax.tree.structure(new) == jax.tree.structure(state)
  assert metrics["loss"].shape == ()
  student = distill.get_config("vits16")
  for head in (student.dino, student.ibot):
    head.prototypes = 8192
  targets.check_student(student, config)


def test_without_a_network_it_does_not_start():
  with pytest.raises(Misfit, match="must be module:function or transformers:MODEL, not ''"):
    prepare.with_backbone_digest(foreign_heads.get_config())
