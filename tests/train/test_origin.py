"""What a run starts from: every kind of weights, with and without heads."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dinov3_jax.models.adapters import fold
from dinov3_jax.train import origin, sharding
from dinov3_jax.train.state import init_state
from dinov3_jax.train.writer import Writer
from dinov3_jax.weights.exporting import export


def lively(params, seed):
  """The same tree with random numbers, and without the bias that keys do not have."""
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), params)
  qkv = params["backbone"]["blocks"]["attn"]["qkv"]
  qkv["bias"] = qkv["bias"].at[:, 1].set(0)
  return params


@pytest.fixture
def config(tiny_config):
  tiny_config.model.update(mask_k_bias=True, norm_eps=1e-5)
  tiny_config.gram.teacher = "own"
  return tiny_config


@pytest.fixture
def make_run(tmp_path):
  """`make_run(config, name, seed)`: the folder of a run, and the teacher in its checkpoint."""
  def make(config, name="run", seed=0):
    teacher = lively(abstract(config).teacher, seed)
    with Writer(tmp_path / name, keep=1, keep_every=0) as writer:
      writer.save(5, {"student": lively(teacher, seed + 100), "teacher": teacher}, {}, config)
    return str(tmp_path / name), teacher
  return make


def abstract(config):
  return jax.eval_shape(lambda: init_state(config))


def started(config, path, **changes):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict({"init_from": str(path), **changes})
  origin.check(config, abstract(config))
  make = jax.jit(lambda: init_state(config))
  return origin.start(config, make()), make()


def test_a_run_gives_its_teacher_with_its_heads(config, make_run, caplog):
  caplog.set_level(logging.INFO)
  run, teacher = make_run(config)
  state, fresh = started(config, run)
  for network in (state.student, state.teacher):
    chex.assert_trees_all_equal(network, teacher)
  chex.assert_trees_all_equal(state.gram_teacher, {"backbone": teacher["backbone"]})
  chex.assert_trees_all_equal(state.opt_state, fresh.opt_state)
  assert state.step == 0
  assert f"starting from {run}: its backbone, its dino_head, its ibot_head" in caplog.messages
  jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)


def test_another_run_can_be_the_gram_teacher(config, make_run):
  run, teacher = make_run(config)
  other, gram = make_run(config, "other", 7)
  state, _ = started(config, run, **{"gram.init_from": other})
  chex.assert_trees_all_equal(state.student, teacher)
  chex.assert_trees_all_equal(state.gram_teacher, {"backbone": gram["backbone"]})


@pytest.mark.parametrize("format", ["hf", "official", "safetensors"])
@pytest.mark.parametrize("with_heads", [True, False])
def test_files_give_their_backbone_and_the_heads_that_they_have(config, make_run, tmp_path, caplog,
                                                                format, with_heads):
  if format == "official":
    pytest.importorskip("torch")
  caplog.set_level(logging.INFO)
  run, teacher = make_run(config)
  export(run, format, tmp_path / "out", heads=with_heads)
  state, fresh = started(config, tmp_path / "out")
  chex.assert_trees_all_equal(state.teacher["backbone"], teacher["backbone"])
  for head in ("dino_head", "ibot_head"):
    chex.assert_trees_all_equal(state.student[head], (teacher if with_heads else
                                                      fresh.student)[head])
  said = ("its backbone, its dino_head, its ibot_head" if with_heads else
          "its backbone; dino_head and ibot_head are fresh")
  assert f"starting from {tmp_path / 'out'}: {said}" in caplog.messages


def test_one_head_alone_is_used(config, make_run, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  run, teacher = make_run(config)
  export(run, "safetensors", tmp_path / "out", heads=True)
  path = tmp_path / "out" / "model.safetensors"
  save_file({name: x for name, x in load_file(path).items() if not name.startswith("ibot")}, path)
  state, fresh = started(config, tmp_path / "out")
  chex.assert_trees_all_equal(state.teacher["dino_head"], teacher["dino_head"])
  chex.assert_trees_all_equal(state.teacher["ibot_head"], fresh.teacher["ibot_head"])
  assert any(line.endswith("its dino_head; ibot_head is fresh") for line in caplog.messages)


def test_heads_can_be_left_out(config, make_run):
  run, teacher = make_run(config)
  config.dino.prototypes = 32  # which would not fit
  state, fresh = started(config, run, init_heads=False)
  chex.assert_trees_all_equal(state.student["backbone"], teacher["backbone"])
  chex.assert_trees_all_equal(state.student["dino_head"], fresh.student["dino_head"])


def test_low_rank_adapters_begin_at_nothing_whatever_the_start_had(config, make_run):
  config.model.adapter_rank = 2
  run, teacher = make_run(config)
  state, fresh = started(config, run)
  attention, before = (x["backbone"]["blocks"]["attn"] for x in (state.student, fresh.student))
  chex.assert_trees_all_equal(attention["qkv_adapter"], before["qkv_adapter"])
  assert not np.any(attention["proj_adapter"]["b"])
  chex.assert_trees_all_close(fold(state.student["backbone"]), fold(teacher["backbone"]))
  config.model.adapter_rank = 0
  plain, _ = started(config, run)
  chex.assert_trees_all_equal(plain.student["backbone"], fold(teacher["backbone"]))


def test_a_norm_that_only_training_has_begins_as_the_one_it_stands_in_for(config, make_run):
  run, teacher = make_run(config)
  config.model.untie_global_and_local_cls_norm = True
  state, _ = started(config, run)
  chex.assert_trees_all_equal(state.student["backbone"]["local_cls_norm"],
                              teacher["backbone"]["norm"])


@pytest.mark.parametrize("changes, said", [
  ({"model.width": 64}, "width is 32 there, 64 here"),
  ({"model.depth": 3}, "depth is 2 there, 3 here"),
  ({"model.num_heads": 4}, "num_heads is 2 there, 4 here"),
  ({"model.norm_eps": 1e-6}, "norm_eps is 1e-05 there, 1e-06 here"),
  ({"model.rope.base": 50.0}, "rope.base is 100.0 there, 50.0 here"),
  ({"model.layerscale": 0.0}, r"blocks/ls1/gamma is \[2, 32\] there, missing here"),
  ({"dino.prototypes": 32}, "dino_head .* prototypes=64, .*: set dino.prototypes=64, or init_hea"),
  ({"ibot.hidden": 64, "ibot.layers": 2}, "hidden=32, layers=3, .*set ibot.hidden=32 ibot.lay")])
def test_what_does_not_fit_is_one_line_before_anything_is_read(config, make_run, monkeypatch,
                                                               changes, said):
  run, _ = make_run(config)
  monkeypatch.setattr(origin.loading, "read", None)
  config.update_from_flattened_dict({"init_from": run, **changes})
  with pytest.raises(ValueError, match=said) as caught:
    origin.check(config, abstract(config))
  assert "\n" not in str(caught.value) and run in str(caught.value)


def test_weights_that_are_not_there(config, tmp_path):
  config.init_from = str(tmp_path / "absent")
  with pytest.raises(FileNotFoundError, match="there is no file or folder"):
    origin.check(config, abstract(config))
  (tmp_path / "run" / "checkpoints").mkdir(parents=True)
  config.init_from = str(tmp_path / "run")
  with pytest.raises(FileNotFoundError, match="no checkpoint in"):
    origin.check(config, abstract(config))


def test_every_array_comes_to_lie_where_the_state_has_it(config, make_run, tmp_path):
  """Of a run and of files alike, on a mesh that cuts parameters along both axes."""
  run, teacher = make_run(config)
  export(run, "safetensors", tmp_path / "out", heads=True)
  config.mesh.update(data=2, fsdp=2, tensor=2)
  mesh = sharding.make_mesh(config)
  for path in (run, tmp_path / "out"):
    config.init_from = str(path)
    shapes = sharding.abstract_state(mesh, lambda: init_state(config))
    layout = jax.tree.map(lambda x: x.sharding, shapes)
    state = origin.start(config, jax.jit(lambda: init_state(config), out_shardings=layout)())
    chex.assert_trees_all_equal(jax.device_get(state.student), jax.device_get(teacher))
    assert all(jax.tree.leaves(jax.tree.map(
      lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, layout)))
