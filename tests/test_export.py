import json
import os
import runpy
import sys

import chex
import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import dinov3_jax
from dinov3_jax import export as module
from dinov3_jax.export import export
from dinov3_jax.train import checkpoint
from dinov3_jax.train.state import init_state
from dinov3_jax.weights import naming

FORMATS = ["hf", "official", "safetensors"]


def lively(params, seed=0):
  """The same tree with random numbers, and without the bias that keys do not have."""
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: rng.normal(0.5, 0.3, x.shape).astype("f4"), params)
  params["backbone"]["blocks"]["attn"]["qkv"]["bias"][:, 1] = 0
  return params


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
  def make(config):
    state = jax.eval_shape(lambda: init_state(config))
    student = lively(state.student)
    folder = tmp_path_factory.mktemp("run")
    with checkpoint.Writer(folder, keep=1, keep_every=0) as writer:
      writer.save(1, {"student": student, "teacher": lively(student, 1)}, {}, config)
    return folder
  return make


@pytest.fixture
def config(tiny_config):
  tiny_config.model.update(mask_k_bias=True, norm_eps=1e-5, untie_global_and_local_cls_norm=True)
  tiny_config.crops.update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
  return tiny_config


def params_of(weights, **kwargs):
  return nnx.to_pure_dict(nnx.state(dinov3_jax.load(None, weights, **kwargs)))


@pytest.mark.parametrize("network", ["teacher", "student"])
@pytest.mark.parametrize("format", FORMATS)
def test_round_trip_is_exact(make_run, config, tmp_path, format, network):
  if format == "official":
    pytest.importorskip("torch")
  run = make_run(config)
  written = export(run, format, tmp_path / "out", network=network)
  assert sorted(tmp_path.glob("out/*")) == written
  expected = params_of(run, network=network)
  got = params_of(tmp_path / "out")
  if format == "hf":
    del expected["local_cls_norm"]
  chex.assert_trees_all_equal(got, expected)
  prepare = dinov3_jax.preprocess(tmp_path / "out")
  assert (prepare.mean, prepare.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
  model, original = dinov3_jax.load(None, tmp_path / "out"), dinov3_jax.load(None, run)
  assert (model.patch_size, model.norm.epsilon, model.rope.periods.tolist()) == (
      original.patch_size, original.norm.epsilon, original.rope.periods.tolist())


def test_the_hf_folder_loads_in_transformers(make_run, config, tmp_path):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  images = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype("f4")
  runs = [dict(ffn="swiglu"), dict(storage_tokens=0, mask_k_bias=False, qkv_bias=True)]
  for i, changes in enumerate(runs):
    config.model.update(changes)
    run = make_run(config)
    export(run, "hf", tmp_path / str(i))
    theirs, report = transformers.AutoModel.from_pretrained(tmp_path / str(i),
                                                            output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
      x = theirs(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    ours = jax.jit(lambda model, x: model(x))(dinov3_jax.load(None, run), images)
    ours = np.concatenate([ours["cls"][:, None], ours["storage"], ours["patches"]], 1)
    np.testing.assert_allclose(ours, x, rtol=0, atol=1e-5)


def test_one_file_becomes_many(make_run, config, tmp_path, monkeypatch):
  transformers = pytest.importorskip("transformers")
  run = make_run(config)
  monkeypatch.setattr(module, "SHARD_BYTES", 20_000)
  export(run, "hf", tmp_path / "out")
  files = sorted(tmp_path.glob("out/*.safetensors"))
  assert len(files) > 2 and max(file.stat().st_size for file in files) < 25_000
  assert files[-1].name == f"model-{len(files):05}-of-{len(files):05}.safetensors"
  expected = params_of(run)
  del expected["local_cls_norm"]
  chex.assert_trees_all_equal(params_of(tmp_path / "out"), expected)
  transformers.AutoModel.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("format", FORMATS)
def test_heads(make_run, config, tmp_path, format):
  run = make_run(config)
  export(run, format, tmp_path / "out", heads=True)
  teacher = lively(jax.eval_shape(lambda: init_state(config)).teacher, 1)
  heads = {name: teacher[name] for name in ("dino_head", "ibot_head")}
  if format == "official":
    torch = pytest.importorskip("torch")
    content = torch.load(tmp_path / "out" / "teacher_checkpoint.pth")
    assert list(content) == ["teacher"]
    arrays = {name: x.numpy() for name, x in content["teacher"].items()}
  else:
    file = "heads" if format == "hf" else "model"
    arrays = load_file(tmp_path / "out" / f"{file}.safetensors")
  if format == "hf":
    chex.assert_trees_all_equal(naming.unflatten(arrays, heads), heads)
  else:
    chex.assert_trees_all_equal(naming.unflatten(arrays, teacher), teacher)
    assert arrays["backbone.rope_embed.periods"].dtype == np.float32
    assert "backbone.blocks.1.attn.qkv.bias_mask" in arrays
    chex.assert_trees_all_equal(params_of(tmp_path / "out"), teacher["backbone"])


def test_the_official_file_is_that_of_the_hub(make_run, config, tmp_path):
  torch = pytest.importorskip("torch")
  run = make_run(config)
  export(run, "official", tmp_path / "out")
  tensors = torch.load(tmp_path / "out" / "backbone.pth")
  expected = naming.flatten(params_of(run)) | naming.buffers(config.model.to_dict())
  assert set(tensors) == set(expected)
  for name, x in expected.items():
    assert tensors[name].dtype == torch.float32 and tensors[name].is_contiguous()
    np.testing.assert_array_equal(tensors[name].numpy(), x)


def test_from_one_format_to_the_next(make_run, config, tmp_path):
  """Any weights can be exported, not only our trainer's."""
  export(make_run(config), "safetensors", tmp_path / "a")
  export(tmp_path / "a", "hf", tmp_path / "b")
  export(tmp_path / "b", "safetensors", tmp_path / "c")
  first, last = (load_file(tmp_path / x / "model.safetensors") for x in "ac")
  assert set(first) - set(last) == {"local_cls_norm.weight", "local_cls_norm.bias"}
  chex.assert_trees_all_equal({name: first[name] for name in last}, last)
  assert dinov3_jax.preprocess(tmp_path / "c").mean == (0.1, 0.2, 0.3)
  with pytest.raises(ValueError, match="has no heads: only our trainer's checkpoints do"):
    export(tmp_path / "b", "hf", tmp_path / "d", heads=True)
  assert not (tmp_path / "d").exists()


def test_what_cannot_be_written(make_run, config, tmp_path, monkeypatch):
  config.model.update(norm="rmsnorm", untie_cls_and_patch_norms=True)
  run = make_run(config)
  with pytest.raises(ValueError, match="has no norm=rmsnorm, untie_cls_and_patch_norms: export as"):
    export(run, "hf", tmp_path / "out")
  assert not (tmp_path / "out").exists()
  with pytest.raises(ValueError, match="is not empty: choose another --out"):
    export(run, "safetensors", run)
  config.model.stem = "conv"
  run = make_run(config)
  with pytest.raises(ValueError, match="the reference has no convolutional stem"):
    export(run, "official", tmp_path / "out")
  export(run, "safetensors", tmp_path / "ours")
  chex.assert_trees_all_equal(params_of(tmp_path / "ours"), params_of(run))
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ModuleNotFoundError, match="pip install torch, or take --format safetensors"):
    export(run, "official", tmp_path / "out")


def test_the_command(make_run, config, tmp_path, monkeypatch, capsys):
  run, out = make_run(config), tmp_path / "out"
  call = ["export", str(run), "--format", "safetensors", "--out", str(out), "--network", "student"]
  monkeypatch.setattr(sys, "argv", call)
  monkeypatch.delitem(sys.modules, "dinov3_jax.export")
  with pytest.raises(SystemExit) as done:
    runpy.run_module("dinov3_jax.export", run_name="__main__")
  assert done.value.code == 0
  assert capsys.readouterr().out.split() == [
      str(out / name) for name in ("config.json", "model.safetensors", "preprocessor_config.json")]
  assert json.loads((out / "config.json").read_text())["dinov3_jax"]["width"] == 32
  chex.assert_trees_all_equal(params_of(out), params_of(run, network="student"))
  with pytest.raises(SystemExit) as error:
    runpy.run_module("dinov3_jax.export", run_name="__main__")
  assert error.value.code == 1 and capsys.readouterr().err == (
      f"error: {out} is not empty: choose another --out{os.linesep}")
