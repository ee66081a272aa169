import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.costs.flops import step_flops
from dinov3_jax.train import inputs, sharding
from dinov3_jax.train.micro_batches import accumulated, split
from dinov3_jax.train.objective import Objective, balancing_chunks
from dinov3_jax.train.state import init_state
from dinov3_jax.train.step import make_train_step

IMAGES = 8


def settings(trajectory, parts):
  """Those of the recorded run with a Gram teacher, for eight images in parts."""
  config = trajectory("gram").config.copy_and_resolve_references()
  config.train.update(batch_size=IMAGES, micro_batches=parts)
  config.koleo.group = 2
  return config


def steps(config, trajectory, rows, mesh=None, count=2):
  """The metrics of the first steps, and the state after them, on masks for `rows` parts."""
  run = trajectory("gram")
  state, batches = run.state(), [run.balanced_batch(i, rows, images=IMAGES) for i in range(count)]
  if mesh is not None:
    layout = sharding.state_sharding(mesh, state)
    state = jax.device_put(state, layout)
    batches = jax.device_put(batches, sharding.batch_sharding(mesh))
  step, metrics = jax.jit(make_train_step(config, mesh)), []
  for batch in batches:
    state, values = step(state, batch)
    metrics.append(jax.device_get(values))
  return metrics, jax.device_get(state)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_make_the_update_of_the_whole_batch(trajectory, parts):
  """Masks, KoLeo's groups and Gram matrices are the same, and Sinkhorn sees all samples."""
  whole, parted = (steps(settings(trajectory, n), trajectory, n) for n in (1, parts))
  for one, several in zip(whole[0], parted[0]):
    assert one.keys() == several.keys() and one["skipped"] == several["skipped"] == 0
    chex.assert_trees_all_close(several, one, rtol=1e-5, atol=1e-6)
  # AdamW's first steps divide a gradient by its own size, so the moments are what can be compared.
  for name in ("mu", "nu"):
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3,
                                                    atol=1e-5 * float(np.abs(b).max()))
    jax.tree.map(close, *(getattr(state.opt_state[1], name) for _, state in (parted, whole)))


def test_two_shards_in_two_parts_are_the_same_on_one_device(trajectory):
  """With stochastic depth, whose rows each part of a shard draws for itself."""
  config = settings(trajectory, 2)
  config.model.drop_path = 0.5
  config.gram.update(image_level=False)
  config.mesh.update(data=2)
  mesh = sharding.make_mesh(config, jax.devices()[:2])
  one, two = (steps(config, trajectory, 4, mesh)[0] for mesh in (None, mesh))
  for a, b in zip(one, two):
    chex.assert_trees_all_close(b, a, rtol=1e-4, atol=1e-6)


def test_activations_of_one_part_are_in_memory(tiny_config):
  def temporaries(parts):
    config = tiny_config.copy_and_resolve_references()
    config.train.update(batch_size=32, micro_batches=parts, remat="none")
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    state = jax.eval_shape(functools.partial(init_state, config))
    batch = sharding.abstract_batch(config, mesh)
    compiled = jax.jit(make_train_step(config), donate_argnums=0).lower(state, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries(8) < temporaries(1) / 3


def fake():
  """An objective that tells what it was given."""

  def look(teacher, heads, batch):
    return dict(dino=batch["x"] * teacher, ibot=batch["x"])

  def balance(heads, rows, temperature, parts=1):
    mean = jnp.mean(rows["dino"])  # of all parts
    return {"dino": (mean, rows["dino"]), "ibot": (mean, rows["ibot"])}, dict(parts=parts)

  def losses(student, heads, gram_teacher, batch, values, key, rows, scales):
    u, v = scales["dino"]
    total = student * jnp.mean(batch["x"]) + student**2 * u
    own = jnp.mean(jnp.abs(v - batch["x"] * heads))
    return total, dict(u=u, own=own, drawn=jax.random.uniform(key))

  return Objective(lambda teacher: teacher, look, balance, losses)


def test_every_part_has_its_images_targets_and_randomness():
  batch = dict(x=jnp.arange(12.0), mask_indices=jnp.zeros((3, 1), jnp.int32))
  arguments = (2.0, 5.0, None, batch, dict(teacher_temp=0.1), jax.random.key(0))
  (total, metrics), gradient = accumulated(fake(), 3)(*arguments)
  # Sinkhorn's stand-in saw all images, once.
  assert metrics["u"] == 5 * 5.5 and metrics["parts"] == 3
  assert metrics["own"] == 0
  np.testing.assert_allclose([total, gradient], [2 * 5.5 + 4 * 27.5, 5.5 + 4 * 27.5])
  drawn = [jax.random.uniform(jax.random.fold_in(jax.random.key(0), i)) for i in range(3)]
  np.testing.assert_allclose(metrics["drawn"], np.mean(drawn), rtol=1e-6)


def test_a_part_takes_of_every_shard():
  batch = dict(x=np.arange(12), mask_indices=np.arange(4)[:, None])  # two shards of two parts
  parts = split(batch, 2)
  np.testing.assert_array_equal(parts["x"], [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]])
  np.testing.assert_array_equal(parts["mask_indices"], [[[0], [2]], [[1], [3]]])


@pytest.mark.parametrize("arguments, chunks", [((65_536, 1, 1, 8), 8), ((65_536, 4, 2, 2), 8),
                                               ((30, 1, 1, 4), 5), ((7, 1, 1, 100), 7)])
def test_sinkhorn_takes_no_more_memory_for_more_parts(arguments, chunks):
  assert balancing_chunks(*arguments) == chunks


@pytest.mark.parametrize("parts, devices", [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_the_pipeline_makes_the_batch_that_the_step_is_compiled_for(tiny_config, parts, devices):
  tiny_config.train.update(batch_size=16, micro_batches=parts)
  tiny_config.data.workers = 0
  mesh = sharding.make_mesh(tiny_config, jax.devices()[:devices])
  rng = np.random.default_rng(0)
  source = [dict(image=rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)) for _ in range(4)]
  pipeline = inputs.open_pipeline(tiny_config, source, mesh)
  batch, _ = inputs.fetch(pipeline, mesh)
  pipeline.close()
  chex.assert_trees_all_equal_shapes_and_dtypes(batch, sharding.abstract_batch(tiny_config, mesh))
  # Each part's indices are into its own patches.
  masks = np.asarray(batch["masks"]).reshape(devices * parts, -1)
  for mask, indices in zip(masks, np.asarray(batch["mask_indices"])):
    np.testing.assert_array_equal(np.flatnonzero(mask), indices)


def test_parts_that_do_not_divide_are_an_error(tiny_config):
  tiny_config.train.update(batch_size=16, micro_batches=3)
  mesh = sharding.make_mesh(tiny_config, jax.devices()[:2])
  for act in (lambda: sharding.abstract_batch(tiny_config, mesh),
              lambda: inputs.open_pipeline(tiny_config, range(10), mesh)):
    with pytest.raises(ValueError, match=r"micro_batches=3 does not divide the 8 images .* 6"):
      act()
  tiny_config.train.update(batch_size=15, micro_batches=1)
  with pytest.raises(ValueError, match="15 images cannot be spread over 2 data shards"):
    sharding.abstract_batch(tiny_config, mesh)


def test_operations_are_those_of_smaller_shards(tiny_config):
  tiny_config.model.drop_path = 0.4
  tiny_config.train.update(batch_size=16, micro_batches=8)
  for teacher in (None, tiny_config.copy_and_resolve_references()):
    tiny_config.train.micro_batches = 8
    parts = step_flops(tiny_config, 1, teacher=teacher)
    tiny_config.train.micro_batches = 1
    assert parts == step_flops(tiny_config, 8, teacher=teacher)
