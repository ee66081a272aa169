import jax
import numpy as np
import pytest

from dinov3_jax.text.step import make_features, make_gradients, make_train_step
from dinov3_jax.train import sharding


def gradients(run, parts, keys=(0,), sizes=None, **settings):
  """Loss, metrics and gradients of the first recorded batch, cut into parts, with each key."""
  config = run.config.copy_and_resolve_references()
  config.train.micro_batches = parts
  config.update_from_flattened_dict(settings)
  batch = run.pairs(0)
  features = jax.jit(make_features(config, run.backbone))(run.backbone_params, batch["images"])
  batch, student, mesh = dict(tokens=batch["tokens"], features=features), run.student, None
  if sizes:
    config.mesh.update(tensor=1, **sizes)
    mesh = sharding.make_mesh(config, jax.devices()[:2])
    batch = sharding.place_batch(batch, mesh)
    student = jax.device_put(student, sharding.state_sharding(mesh, student))
  compiled = jax.jit(make_gradients(config, run.backbone, mesh))
  return [jax.device_get(compiled(student, batch, jax.random.key(key))) for key in keys]


@pytest.mark.parametrize("sizes", [None, dict(data=1, fsdp=2)], ids=["one device", "fsdp=2"])
def test_gradients_are_those_of_the_whole_batch(recording, sizes):
  run = recording("dinotxt_gram")
  ((loss, metrics), grads), = gradients(run, 1)
  ((parts_loss, parts_metrics), parts_grads), = gradients(run, 4, sizes=sizes)
  np.testing.assert_allclose(parts_loss, loss, rtol=1e-5)
  assert metrics.keys() == parts_metrics.keys() == {"contrastive_loss", "logit_scale", "gram_loss"}
  for name, x in metrics.items():
    np.testing.assert_allclose(parts_metrics[name], x, rtol=1e-5, err_msg=name)
  ours = run.named(parts_grads)
  for name, x in run.named(grads).items():
    np.testing.assert_allclose(ours[name], x, rtol=0, atol=1e-5 * np.linalg.norm(x) + 1e-9,
                               err_msg=name)


def test_stochastic_depth_is_drawn_from_the_key(recording):
  found = gradients(recording("dinotxt"), 2, (0, 0, 1), **{"vision_head.drop_path": 0.5})
  losses = [loss for (loss, _), _ in found]
  assert losses[0] == losses[1] != losses[2]


def test_activations_take_less_memory(recording):
  """What XLA sets aside for a step of 64 pairs."""
  run = recording("dinotxt")
  needed = {}
  for parts in (1, 8):
    config = run.config.copy_and_resolve_references()
    config.train.micro_batches = parts
    width, patches = run.backbone["width"], 256
    shape = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)
    batch = dict(tokens=jax.ShapeDtypeStruct((64, config.text.context), np.int32), features=dict(
      cls=shape(64, width), storage=shape(64, 4, width), patches=shape(64, patches, width)))
    step = jax.jit(make_train_step(config, run.backbone), donate_argnums=0)
    compiled = step.lower(jax.eval_shape(run.state), batch).compile()
    needed[parts] = compiled.memory_analysis().temp_size_in_bytes
  assert needed[8] < needed[1] / 3
