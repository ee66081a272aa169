import functools

import jax
import pytest

from configs import dinotxt_vitl16
from dinov3_jax.models.variants import variant
from dinov3_jax.text.backbone import complete
from dinov3_jax.text.costs import step_flops
from dinov3_jax.text.state import init_state
from dinov3_jax.text.step import make_features, make_train_step
from dinov3_jax.weights import architecture


def test_the_operations_are_those_of_the_compiled_programs(recording):
  """XLA's own count of a step without anything computed twice, and of the backbone's pass."""
  run = recording("dinotxt")
  config = run.config.copy_and_resolve_references()
  backbone = run.backbone | dict(depth=1, in_channels=3, ffn_align=8)
  config.vision_head.depth = config.text.depth = 1  # XLA counts a loop's body once
  config.images.size = run.record["S"]
  config.train.batch_size = run.record["B"]
  batch = run.pairs(0)
  params = architecture.abstract(backbone)[1]
  features = jax.jit(make_features(config, backbone))
  seen = jax.eval_shape(features, params, batch["images"])
  state = jax.eval_shape(functools.partial(init_state, config, backbone))
  step = jax.jit(make_train_step(config, backbone))
  operations = sum(lowered.cost_analysis()["flops"] for lowered in (
    features.lower(params, batch["images"]),
    step.lower(state, dict(tokens=batch["tokens"], features=seen))))
  assert step_flops(config, backbone, 1).full == pytest.approx(operations, rel=0.1)


def test_stochastic_depth_saves_its_share_of_the_vision_head():
  config, settings = dinotxt_vitl16.get_config(), complete(variant("vitl16").settings)
  with_it = step_flops(config, settings, 256)
  config.vision_head.drop_path = 0.0
  assert with_it.full == step_flops(config, settings, 256).full
  saved = with_it.full - with_it.executed
  config.vision_head.depth = 4  # twice as much of it
  more = step_flops(config, settings, 256).full - with_it.full
  # 179 of 256 rows are kept where 70 % are asked for.
  assert saved == pytest.approx(more * (1 - 179 / 256), rel=1e-6)


def test_a_pair_costs_what_its_parameters_say():
  config, settings = dinotxt_vitl16.get_config(), complete(variant("vitl16").settings)
  config.train.batch_size = 256
  _, shapes = architecture.abstract(settings)
  parameters = sum(x.size for x in jax.tree.leaves(shapes))
  of_image = 2 * parameters * 201  # a multiplication and an addition for each token
  of_text = 6 * 472e6 * 77  # and twice that backward; the embeddings are looked up
  per_pair = step_flops(config, settings, 1).full / 256
  assert of_image + of_text < per_pair < 1.3 * (of_image + of_text)
