import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import base
from dinov3_jax.models.partition import path_name, spec_of
from dinov3_jax.train import checkpoint
from dinov3_jax.train.sharding import (
  abstract_state,
  batch_sharding,
  data_shards,
  local_shards,
  make_mesh,
  place_batch,
  state_sharding,
)
from dinov3_jax.train.state import init_state
from dinov3_jax.train.step import make_train_step

LOSSES = dict(loss="total", koleo_loss="koleo_loss", ibot_loss="ibot_loss", gram_loss="gram_loss",
              dino_global_loss="dino_global_crops_loss", dino_local_loss="dino_local_crops_loss")


def mesh_of(*sizes, devices=8):
  config = base.get_config()
  config.mesh.update(dict(zip(("data", "fsdp", "tensor"), sizes)))
  return make_mesh(config, jax.devices()[:devices])


def compile_step(config, mesh, state):
  """The step on a mesh, and the state laid out for it."""
  layout = state_sharding(mesh, state)
  step = jax.jit(make_train_step(config, mesh), donate_argnums=0, out_shardings=(layout, None))
  return step, jax.device_put(state, layout)


@pytest.mark.parametrize("name", ["pretrain", "gram"])
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 4)], ids=str)
def test_the_recorded_figures_hold_on_any_mesh(trajectory, name, sizes):
  """Every data shard has the images and masks of the one process that was recorded, so that the
  means over all of them are its own."""
  run = trajectory(name)
  mesh = mesh_of(*sizes, devices=math.prod(sizes))
  copies = lambda x: jax.device_put(np.concatenate([x] * data_shards(mesh)), batch_sharding(mesh))
  step, state = compile_step(run.config, mesh, run.state())
  for row in run.record["rows"]:
    state, metrics = step(state, jax.tree.map(copies, run.batch(row["it"])))
    for ours, theirs in LOSSES.items():
      if theirs not in row:
        continue
      np.testing.assert_allclose(metrics[ours], row[theirs], rtol=1e-4, err_msg=ours)
    for name, norm in row["grad_norm"].items():
      np.testing.assert_allclose(metrics[f"grad_norm/{name}"], norm, rtol=1e-4)
  # The layout has not drifted, which would compile the step again.
  in_place = jax.tree.map(lambda x, s: x.sharding == s, state, state_sharding(mesh, state))
  assert all(jax.tree.leaves(in_place)) and step._cache_size() == 1


@pytest.mark.parametrize("sizes", [(4, 1, 1), (2, 2, 2)], ids=str)
def test_a_step_is_the_same_on_four_shards_and_one_device(trajectory, sizes):
  """Four data shards, each with masks, KoLeo groups, Gram matrices and kept rows of its own."""
  run = trajectory("gram")
  config = run.config.copy_and_resolve_references()
  config.train.batch_size = 8
  config.koleo.group = 2
  config.model.drop_path = 0.5
  config.model.rope.rescale = 2.0
  config.gram.update(image_level=False, tokens="masked", stats=True)
  results = []
  for shape in ((1, 1, 1), sizes):
    mesh = mesh_of(*shape, devices=math.prod(shape))
    step, state = compile_step(config, mesh, run.state())
    batches = [jax.device_put(run.balanced_batch(i, 4, images=8), batch_sharding(mesh))
               for i in range(3)]
    compiled = step.lower(state, batches[0]).compile()
    results.append([])
    for batch in batches:
      state, metrics = compiled(state, batch)
      results[-1].append(jax.device_get(metrics))
  for one, four in zip(*results):
    assert set(one) == set(four) and one["skipped"] == 0
    for name in one:
      np.testing.assert_allclose(four[name], one[name], rtol=1e-4, err_msg=name)
  if sizes == (4, 1, 1):
    # What one process does for itself in the reference needs no other device here: data parallelism
    # sums, and gathers nothing.
    program = compiled.as_text()
    assert re.search(r"all-reduce(-start)?\(", program)
    assert not re.search(r"(all-gather|all-to-all|collective-permute)(-start)?\(", program)


@pytest.mark.slow
def test_a_checkpoint_of_one_mesh_goes_on_on_another(trajectory, tmp_path):
  run = trajectory("gram")
  config = run.config.copy_and_resolve_references()
  config.train.batch_size = 16
  config.koleo.group = 2
  batch = lambda i, mesh: jax.device_put(
    run.balanced_batch(i, data_shards(mesh), images=16), batch_sharding(mesh))

  first = mesh_of(8, 1, 1)
  step, state = compile_step(config, first, run.state())
  state, _ = step(state, batch(0, first))
  with checkpoint.Writer(tmp_path, keep=1, keep_every=0) as writer:
    writer.save(1, state, {}, config)
  _, expected = step(state, batch(1, first))

  second = mesh_of(1, 4, 2)
  restored = checkpoint.restore(checkpoint.latest(tmp_path), abstract_state(second, run.state))
  step, restored = compile_step(config, second, restored)
  _, metrics = step(restored, batch(1, second))
  for name in LOSSES:
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)


def test_initialisation_does_not_know_of_the_mesh(tiny_config):
  tiny_config.gram.teacher = "own"
  init = lambda: init_state(tiny_config)
  mesh = mesh_of(2, 2, 2)
  layout = state_sharding(mesh, jax.eval_shape(init))
  # The random bits are the same; what a compiler makes of a logarithm differs in the last place.
  chex.assert_trees_all_close(jax.device_get(jax.jit(init, out_shardings=layout)()),
                              jax.device_get(jax.jit(init)()), rtol=1e-6, atol=0)


KINDS = dict(
    plain=dict(),
    swiglu=dict(ffn="swiglu", untie_cls_and_patch_norms=True, qkv_bias=False),
    rms=dict(norm="rmsnorm", untie_global_and_local_cls_norm=True, storage_tokens=0),
    bare=dict(layerscale=0.0, proj_bias=False, ffn_bias=False),
    stem=dict(stem="conv"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_rules_cover_every_parameter(tiny_config, kind):
  tiny_config.model.update(KINDS[kind])
  tiny_config.gram.teacher = "own"
  state = jax.eval_shape(lambda: init_state(tiny_config))
  layout = state_sharding(mesh_of(2, 2, 2), state)
  chex.assert_trees_all_equal_structs(state, layout)
  specs = lambda tree: {path_name(path): x.spec
                        for path, x in jax.tree_util.tree_leaves_with_path(tree)}
  # Averages, moments and the Gram teacher lie where the student's parameter does.
  student, moments = specs(layout.student), layout.opt_state[1]
  assert specs(layout.teacher) == specs(moments.mu) == specs(moments.nu) == student
  assert specs(layout.gram_teacher).items() <= student.items()
  # Every matrix of a block or a head is cut by both axes of the parameters.
  for name, spec in student.items():
    if re.search("(blocks|head/mlp)/.*kernel$", name):
      assert {"fsdp", "tensor"} <= set(spec), name


def test_a_device_holds_its_part_only(tiny_config):
  init = lambda: init_state(tiny_config)
  layout = state_sharding(mesh_of(1, 4, 2), jax.eval_shape(init))
  state = jax.jit(init, out_shardings=layout)()
  kernel = state.student["backbone"]["blocks"]["mlp"]["fc1"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 8
  matrices = [x for x in jax.tree.leaves(state.student) if x.size > 1000]
  held = sum(x.addressable_shards[0].data.size for x in matrices)
  assert held < sum(x.size for x in matrices) / 4


def test_prototypes_are_cut_by_both_axes_or_not_at_all():
  mesh, name = mesh_of(1, 4, 2), "student/dino_head/last_layer/kernel"
  assert spec_of(name, (48, 8), mesh) == P(None, ("fsdp", "tensor"))
  assert spec_of(name, (48, 12), mesh) == P(None, None)


def test_an_unknown_parameter_is_an_error():
  state = {"student": {"backbone": {"pos_embed": jnp.zeros(3)}}}
  with pytest.raises(ValueError, match="no sharding rule covers student/backbone/pos_embed: add"):
    state_sharding(mesh_of(8, 1, 1), state)


@pytest.mark.parametrize("asked, sizes, shards", [
    ((-1, 1, 1), (8, 1, 1), 8), ((2, -1, 2), (2, 2, 2), 4), ((1, 2, -1), (1, 2, 4), 2),
    ((4, 2, 1), (4, 2, 1), 8)])
def test_mesh(asked, sizes, shards):
  mesh = mesh_of(*asked)
  assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), sizes))
  assert data_shards(mesh) == shards
  assert batch_sharding(mesh).shard_shape((16, 3)) == (16 // shards, 3)


def test_a_batch_is_placed_shard_by_shard():
  mesh = mesh_of(2, 2, 2)
  assert local_shards(mesh) == [0, 1, 2, 3]
  batch = dict(crops=np.arange(24).reshape(8, 3), indices=np.arange(4)[:, None])
  placed = place_batch(batch, mesh)
  chex.assert_trees_all_equal(jax.device_get(placed), batch)
  assert all(x.sharding == batch_sharding(mesh) for x in placed.values())


@pytest.mark.parametrize("count", [2, 6])
def test_a_batch_that_does_not_fill_the_shards_is_an_error(count):
  with pytest.raises(ValueError, match=f"{count} images cannot be split evenly over 4 data shards"):
    place_batch(dict(crops=np.zeros((count, 3))), mesh_of(2, 2, 2))


class Chip:
  """A device of a slice, as far as a mesh looks at it."""

  device_kind, process_index = "TPU v5", 0

  def __init__(self, slice_index, i, platform="tpu"):
    self.platform = platform
    self.id, self.slice_index = i, slice_index
    self.coords, self.core_on_chip = (i % 4, i // 4, 0), 0


def test_slices_lie_along_the_data_axis():
  config = base.get_config()
  chips = [Chip(i // 8, i % 8) for i in range(16)]
  config.mesh.update(data=-1, fsdp=4)
  mesh = make_mesh(config, chips)
  slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
  assert mesh.devices.shape == (4, 4, 1)
  np.testing.assert_array_equal(slices[..., 0], np.repeat([0, 0, 1, 1], 4).reshape(4, 4))
  config.mesh.update(data=1, fsdp=16)
  with pytest.raises(ValueError, match=r"mesh\.data=1 is no multiple of the 2 slices"):
    make_mesh(config, chips)
  # GPUs of several hosts are no slices.
  gpus = [Chip(i // 8, i, "gpu") for i in range(16)]
  assert make_mesh(config, gpus).shape["fsdp"] == 16


@pytest.mark.parametrize("asked", [(2, 1, 1), (-1, 3, 1), (-1, -1, 8), (16, 1, 1), (-1, 8, 0)])
def test_a_mesh_that_does_not_fit(asked):
  text = f"data={asked[0]} x fsdp={asked[1]} x tensor={asked[2]}"
  with pytest.raises(ValueError, match=f"mesh {text} does not match 8 devices: set config"):
    mesh_of(*asked)
