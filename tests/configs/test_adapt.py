"""The recipes `adapt.py` and `heads.py`, and what a run of them does in its phases."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import adapt, base, distill, heads
from dinov3_jax.costs.flops import step_flops
from dinov3_jax.models.adapters import fold, is_adapter
from dinov3_jax.models.variants import VARIANTS, differences
from dinov3_jax.train import sharding, targets
from dinov3_jax.train.settings import check_settings
from dinov3_jax.train.state import init_state
from dinov3_jax.train.step import make_train_step
from dinov3_jax.train.teacher import find
from dinov3_jax.train.writer import Writer
from dinov3_jax.weights.exporting import export
from dinov3_jax.weights.loading import load

PUBLISHED = [name for name, row in VARIANTS.items()
             if next(iter(row.releases.values())).repo is not None]


def keys_of(config):
  return flatten_dict(config.to_dict()).keys()


@pytest.mark.parametrize("recipe", [adapt, heads])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_has_a_recipe(recipe, name):
  config, expected = recipe.get_config(name), base.get_config()
  check_settings(config)
  assert not differences(config.model.to_dict(), VARIANTS[name].settings)
  assert config.init_from == VARIANTS[name].releases["lvd1689m"].repo
  assert config.model.drop_path <= 0.1
  if "depths" in config.model:
    with expected.unlocked():
      expected.model = base.convnext((1,) * 4, (1,) * 4)
  assert config.is_locked and keys_of(config) == keys_of(expected)


def test_a_variant_without_published_weights_is_told():
  with pytest.raises(ValueError, match="weights of vitl16plus are not on the Hugging Face hub"):
    adapt.get_config("vitl16plus")
  with pytest.raises(FileNotFoundError, match="there is no file or folder /nowhere"):
    adapt.get_config("/nowhere")


@pytest.mark.parametrize("recipe", [adapt, heads])
def test_a_step_can_be_made(recipe):
  config = recipe.get_config("vits16")
  batch = sharding.abstract_batch(config, sharding.make_mesh(config, jax.devices()[:1]))
  assert "gram_crops" not in batch
  state = jax.eval_shape(lambda: init_state(config))
  new, metrics = jax.eval_shape(make_train_step(config), state, batch)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  assert ("cls_preservation_loss" in metrics) == (recipe is adapt)


def test_what_the_headers_say_of_the_cost():
  for recipe, minutes in ((adapt, "15 minutes"), (heads, "1 minute of")):
    config = recipe.get_config("vits16")
    flops = step_flops(config, 1).full
    said = " ".join(recipe.__doc__.split())
    assert f"{flops / 1e12:.0f} TFLOP a step: {minutes}" in said
    assert f"{flops * config.train.steps / (0.4 * 989e12) / 60:.0f}" == minutes.split()[0]
    assert f"{config.train.steps:,} steps of {config.train.batch_size} images" in said


@pytest.fixture
def run(tiny_config, tmp_path):
  """A trained run, whose model no recipe has."""
  tiny_config.model.update(mask_k_bias=True, untie_global_and_local_cls_norm=True)
  tiny_config.crops.update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
  state = jax.jit(lambda: init_state(tiny_config))()
  with Writer(tmp_path / "run", keep=1, keep_every=0) as writer:
    writer.save(1, {"student": state.student, "teacher": state.teacher}, {}, tiny_config)
  return tmp_path / "run", tiny_config


@pytest.mark.parametrize("kind", ["run", "safetensors", "hf", "with heads"])
def test_the_network_follows_the_weights(run, tmp_path, kind):
  path, trained = run
  if kind != "run":
    export(path, "hf" if kind == "hf" else "safetensors", tmp_path / "out",
           heads=kind == "with heads")
    path = tmp_path / "out"
  config = adapt.get_config(str(path))
  assert not differences(config.model.to_dict(), trained.model.to_dict())
  assert config.model.untie_global_and_local_cls_norm == (kind != "hf")
  assert config.init_from == str(path) and config.crops.mean == (0.1, 0.2, 0.3)
  known = kind in ("run", "with heads")
  for head in (config.dino, config.ibot):
    assert (head.prototypes, head.hidden) == ((64, 32) if known else (8192, 2048))


def small(recipe, path, **changes):
  """The recipe at a size that runs within seconds."""
  config = recipe.get_config(str(path))
  for head in (config.dino, config.ibot):
    head.update(prototypes=64, hidden=32, bottleneck=16)
  config.crops.update(global_sizes=(32,), local_sizes=(16,), locals=3)
  config.train.update(steps=9, batch_size=4, dtype="float32")
  config.koleo.group = 4
  config.optim.lr_scaling = "none"
  config.schedules.update(lr=base.constant(1e-3), momentum=base.constant(0.9),
                          teacher_temp=base.constant(0.07))
  if config.optim.freeze_backbone_steps > 0:
    config.optim.update(freeze_backbone_steps=3, ramp_backbone_steps=3)
  config.update_from_flattened_dict(changes)
  check_settings(config)
  return config


def history(config, count):
  """The states before and after each step, and each step's metrics."""
  step = jax.jit(make_train_step(config))
  states, metrics = [jax.jit(lambda: init_state(config))()], []
  for it in range(count):
    batch = batch_of(config, it)
    state, values = step(states[-1], batch)
    states.append(state)
    metrics.append(jax.device_get(values))
  return jax.device_get(states), metrics


def batch_of(config, it, mesh=None):
  """Random images and masks, as the pipeline makes them."""
  if mesh is None:
    mesh = sharding.make_mesh(config, jax.devices()[:1])
  abstract = sharding.abstract_batch(config, mesh)
  rng = np.random.default_rng(it)
  batch = {name: rng.integers(0, 256, x.shape, np.uint8) for name, x in abstract.items()
           if name.endswith("crops")}
  shards, count = abstract["mask_indices"].shape
  own = abstract["masks"].size // shards
  places = np.stack([np.sort(rng.permutation(own)[:count]) for _ in range(shards)])
  masks = np.zeros((shards, own), bool)
  np.put_along_axis(masks, places, True, axis=1)
  return batch | dict(masks=masks.reshape(abstract["masks"].shape),
                      mask_indices=places.astype(np.int32),
                      mask_weights=np.full((shards, count), 0.1, np.float32))


def adam_of(state):
  return state.opt_state[1]


def test_the_backbone_waits_and_then_learns_at_a_rising_rate(run):
  config = small(adapt, run[0], **{"cls_preservation.weight": 3.0})
  states, metrics = history(config, 8)
  first = states[0]
  for state in states[1:4]:  # frozen
    for part in (state.student, state.teacher, state.gram_teacher):
      chex.assert_trees_all_equal(part["backbone"], first.student["backbone"])
    chex.assert_trees_all_equal(adam_of(state)["backbone"], adam_of(first)["backbone"])
    assert not np.any(state.student["dino_head"]["last_layer"]["kernel"]
                      == first.student["dino_head"]["last_layer"]["kernel"])
  np.testing.assert_allclose([m["backbone_ramp"] for m in metrics],
                             [0, 0, 0, 0.25, 0.5, 0.75, 1, 1])
  moved = lambda a, b: max(jax.tree.leaves(jax.tree.map(
    lambda x, y: np.abs(x - y).max(), a.student["backbone"], b.student["backbone"])))
  steps = [moved(a, b) for a, b in itertools.pairwise(states[3:])]
  # Adam's first update is a whole rate: here that of the ramp, and no larger for the wait.
  np.testing.assert_allclose(steps[0], 0.25 * 1e-3, rtol=0.1)
  assert steps[0] < steps[1] < steps[2]
  assert int(adam_of(states[-1])["backbone"].count) == 5
  assert int(adam_of(states[-1])["heads"].count) == 8
  chex.assert_trees_all_equal(states[-1].gram_teacher["backbone"], first.student["backbone"])
  for values in metrics:
    total = (0.25 * values["dino_global_loss"] + 0.75 * values["dino_local_loss"]
             + values["ibot_loss"] + 0.2 * values["koleo_loss"] + values["gram_loss"]
             + 3 * values["cls_preservation_loss"])
    np.testing.assert_allclose(values["loss"], total, rtol=1e-5)
    assert values["cls_preservation_loss"] > 0 and values["gram_loss"] > 0  # of masked crops


def test_only_adapters_and_heads_learn_and_have_moments(run):
  config = small(adapt, run[0], **{"model.adapter_rank": 2})
  states, _ = history(config, 6)
  first, last = states[0].student["backbone"], states[-1].student["backbone"]
  for state in states:
    for part in (state.student, state.teacher):
      base_of = lambda tree: {**tree, "blocks": {**tree["blocks"], "attn": {
        key: x for key, x in tree["blocks"]["attn"].items() if not key.endswith("_adapter")}}}
      chex.assert_trees_all_equal(base_of(part["backbone"]), base_of(first))
  for name in ("qkv_adapter", "proj_adapter"):
    assert np.any(last["blocks"]["attn"][name]["b"])
    assert np.any(states[-1].teacher["backbone"]["blocks"]["attn"][name]["b"])
  sizes = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  adapters = sizes({key: x for key, x in first["blocks"]["attn"].items() if "adapter" in key})
  assert sizes(adam_of(states[0])["backbone"]) == 2 * adapters + 1  # and the count


def test_adapters_leave_the_first_step_as_it_is_and_are_folded_by_export(run, tmp_path):
  plain = history(small(adapt, run[0]), 0)[0][0]
  config = small(adapt, run[0], **{"model.adapter_rank": 2})
  states, _ = history(config, 6)
  assert jax.tree.structure(fold(states[0].student["backbone"])) == jax.tree.structure(
    plain.student["backbone"])
  with Writer(tmp_path / "adapted", keep=1, keep_every=0) as writer:
    state = jax.tree.map(jnp.asarray, states[-1])
    writer.save(6, {"student": state.student, "teacher": state.teacher}, {}, config)
  export(tmp_path / "adapted", "hf", tmp_path / "out")
  images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
  folded, again = load(None, tmp_path / "adapted"), load(None, tmp_path / "out")
  np.testing.assert_allclose(folded(images)["cls"], again(images)["cls"], atol=1e-6)
  torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
  theirs = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
  with torch.no_grad():
    out = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2)))
  np.testing.assert_allclose(folded(images)["cls"], out.pooler_output.numpy(), atol=1e-5)


def test_heads_alone_leave_the_backbone_to_the_last_bit_and_are_a_teacher(run, tmp_path):
  config = small(heads, run[0])
  states, metrics = history(config, 3)
  for part in (states[-1].student, states[-1].teacher):
    chex.assert_trees_all_equal(part["backbone"], states[0].student["backbone"])
  assert all(values["grad_norm/backbone"] == 0 for values in metrics)
  assert np.any(states[-1].teacher["ibot_head"]["last_layer"]["kernel"]
                != states[0].teacher["ibot_head"]["last_layer"]["kernel"])
  moments = adam_of(states[0]).inner_state
  assert set(flatten_dict(jax.tree.map(np.shape, moments.mu["dino_head"])))
  assert not jax.tree.leaves(moments.mu["backbone"])
  with Writer(tmp_path / "heads", keep=1, keep_every=0) as writer:
    state = jax.tree.map(jnp.asarray, states[-1])
    writer.save(3, {"student": state.student, "teacher": state.teacher}, {}, config)
  found = find(str(tmp_path / "heads"))
  student = distill.get_config("vits16")
  student.update_from_flattened_dict({
    "dino.prototypes": 64, "ibot.prototypes": 64, "train.dtype": "float32"})
  targets.check_student(student, found.config)
  teacher = found.read(sharding.make_mesh(config, jax.devices()[:1]), "float32")
  made = targets.make_targets(student, found.config)(
    teacher.params, {"global_crops": np.zeros((2, 2, 32, 32, 3), np.uint8)})
  assert made["cls"].shape == (2, 2, 16) and np.isfinite(made["patches"]).all()


def test_on_a_mesh_adapters_learn_as_on_one_device(run):
  config = small(adapt, run[0], **{
    "model.adapter_rank": 2, "model.drop_path": 0.0, "koleo.group": 2, "mesh.data": 1,
    "mesh.fsdp": 2, "mesh.tensor": 2, "optim.freeze_backbone_steps": 0,
    "optim.ramp_backbone_steps": 0})
  config.model.rope.rescale = None
  mesh = sharding.make_mesh(config, jax.devices()[:4])
  layout = jax.tree.map(lambda x: x.sharding,
                        sharding.abstract_state(mesh, lambda: init_state(config)))
  attention = layout.student["backbone"]["blocks"]["attn"]
  assert attention["qkv_adapter"]["b"].spec[3] == attention["proj_adapter"]["a"].spec[1] == "tensor"
  assert attention["qkv_adapter"]["a"].spec[1] == attention["proj_adapter"]["b"].spec[2] == "fsdp"
  batch = batch_of(config, 0, mesh)
  state = jax.jit(lambda: init_state(config))()
  lively = lambda path, x: 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape) if (
    any(is_adapter(str(getattr(key, "key", ""))) for key in path)) else x
  student = jax.tree_util.tree_map_with_path(lively, state.student)
  state = state.replace(student=student)
  one, expected = jax.jit(make_train_step(config))(state, batch)
  other, metrics = jax.jit(make_train_step(config, mesh))(
    jax.device_put(state, layout), jax.device_put(batch, sharding.batch_sharding(mesh)))
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
  chex.assert_trees_all_close(adam_of(jax.device_get(other)), adam_of(jax.device_get(one)),
                              rtol=1e-3, atol=1e-6)
