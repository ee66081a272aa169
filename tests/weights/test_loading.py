import argparse
import json
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

import dinov3_jax
from dinov3_jax.models.variants import VARIANTS, Variant, build
from dinov3_jax.train import checkpoint
from dinov3_jax.train.state import init_state
from dinov3_jax.weights import naming

SETTINGS = dict(width=32, depth=3, num_heads=2, patch_size=8, storage_tokens=4, mask_k_bias=True,
                norm_eps=1e-5)


@pytest.fixture(autouse=True)
def small_variants(monkeypatch):
  """The table, but with models that take no time."""
  changes = dict(vits16=SETTINGS, vitb16=SETTINGS | dict(num_heads=4, width=64),
                 vit7b16=SETTINGS | dict(untie_global_and_local_cls_norm=True, ffn="swiglu"),
                 convnext_tiny=dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)))
  for name in list(VARIANTS):
    if name not in changes:
      monkeypatch.delitem(VARIANTS, name)
  for name, settings in changes.items():
    monkeypatch.setitem(VARIANTS, name, Variant(settings, VARIANTS[name].releases))


def random_params(name, seed=0):
  shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(
      lambda: build(VARIANTS[name].settings, rngs=nnx.Rngs(0)))))
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)
  if "blocks" in params:
    params["blocks"]["attn"]["qkv"]["bias"][:, 1] = 0
  return params


def official(name):
  """Official arrays of a variant, buffers included."""
  arrays = naming.flatten(random_params(name))
  return arrays | ({} if "convnext" in name else naming.buffers(VARIANTS[name].settings))


def params_of(model):
  return nnx.to_pure_dict(nnx.state(model))


def test_golden_features(golden, tmp_path):
  torch = pytest.importorskip("torch")
  g = golden("vit_swiglu")
  state = {k.removeprefix("sd/"): torch.tensor(v) for k, v in g.items() if k.startswith("sd/")}
  torch.save(state, tmp_path / "weights.pth")
  (tmp_path / "config.json").write_text(json.dumps({"dinov3_jax": dict(
      width=64, depth=3, num_heads=2, storage_tokens=4, mask_k_bias=True, norm_eps=1e-5,
      ffn="swiglu", ffn_ratio=3.0, ffn_align=64, qkv_bias=False)}))
  model = dinov3_jax.load(None, tmp_path)
  assert model.local_cls_norm is not None
  out = jax.jit(lambda model, x: model(x))(model, np.moveaxis(g["x"], 1, -1))
  for ours, theirs in dict(cls="cls", storage="storage", patches="patch").items():
    np.testing.assert_allclose(out[ours], g[theirs], rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["flat", "teacher", "bfloat16", "old"])
def test_files_of_the_reference(tmp_path, form):
  torch = pytest.importorskip("torch")
  tensors = {k: torch.tensor(v) for k, v in official("vit7b16").items()}
  expected = random_params("vit7b16")
  if form == "teacher":
    tensors = {"teacher": {f"backbone.{k}": v for k, v in tensors.items()} | {
        "dino_head.mlp.0.bias": torch.zeros(3), "ibot_head.last_layer.weight": torch.zeros(3, 2)}}
  if form == "bfloat16":
    tensors = {k: v.bfloat16() for k, v in tensors.items()}
    expected = jax.tree.map(lambda x: np.float32(x.astype(jnp.bfloat16)), expected)
  torch.save(tensors, tmp_path / "w.pth", _use_new_zipfile_serialization=form != "old")
  for name in ("vit7b16", None):
    model = dinov3_jax.load(name, tmp_path / "w.pth")
    chex.assert_trees_all_equal(params_of(model), expected)
    assert model.blocks.norm1.epsilon == 1e-5


def test_weights_without_the_local_norm(tmp_path):
  arrays = {k: v for k, v in official("vit7b16").items() if "local" not in k}
  save_file(arrays, tmp_path / "model.safetensors")
  for name in ("vit7b16", None):
    assert dinov3_jax.load(name, tmp_path).local_cls_norm is None


@pytest.mark.parametrize("name", ["vits16", "vitb16", "convnext_tiny"])
@pytest.mark.parametrize("convention", ["official", "huggingface"])
def test_weights_say_which_model_they_are(tmp_path, name, convention):
  file = tmp_path / "any.safetensors"
  arrays = official(name) if convention == "official" else naming.flatten(
      random_params(name), convention, mask_k_bias=True)
  save_file(arrays, file)
  model = dinov3_jax.load(None, file)
  chex.assert_trees_all_equal(params_of(model), random_params(name))
  save_file(arrays | {"more": np.zeros(2)}, file)
  with pytest.raises(ValueError, match=r"of no use: more|width of 32 is no whole number of heads"):
    dinov3_jax.load(None, file)


def test_one_line_lists_what_does_not_fit(tmp_path):
  arrays = official("vits16")
  del arrays["norm.bias"]
  arrays |= {"extra": np.zeros(3), "cls_token": np.zeros((1, 1, 8), "f4"),
             "blocks.0.attn.qkv.bias_mask": np.ones(96, "f4"),
             "rope_embed.periods": np.ones(4, "f4"), "norm.weight": np.zeros(32, int)}
  save_file(arrays, tmp_path / "w.safetensors")
  with pytest.raises(ValueError) as error:
    dinov3_jax.load("vits16", tmp_path / "w.safetensors")
  message = str(error.value)
  for part in ("w.safetensors: these weights do not", "missing: norm.bias", "of no use: extra",
               "cls_token is [1, 1, 8], expected [1, 1, 32]", "norm.weight is int64, expected f",
               "bias_mask contradicts", "rope_embed.periods contradicts"):
    assert part in message
  assert "\n" not in message


@pytest.mark.parametrize("name, dtype", [("vit7b16", "bfloat16"), ("convnext_tiny", "float32")])
def test_each_device_takes_its_part(tmp_path, name, dtype):
  save_file(official(name), tmp_path / "w.safetensors")
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  model = dinov3_jax.load(name, tmp_path / "w.safetensors", dtype, mesh)
  params = params_of(model)
  expected = jax.tree.map(lambda x: x.astype(dtype), random_params(name))
  chex.assert_trees_all_equal(jax.device_get(params), expected)
  blocks = params["blocks"] if name == "vit7b16" else params["stages"]["1"]
  up = blocks["mlp"]["w1" if name == "vit7b16" else "fc1"]["kernel"]
  assert up.sharding.spec == P(None, "fsdp", "tensor")
  assert up.addressable_shards[0].data.size * 4 == up.size
  fresh = params_of(dinov3_jax.load(name, None, dtype, mesh))
  assert jax.tree.map(lambda x: (x.dtype, x.sharding), fresh) == jax.tree.map(
      lambda x: (x.dtype, x.sharding), params)


def test_fresh():
  params = params_of(dinov3_jax.load("vits16", dtype=jnp.bfloat16))
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
  np.testing.assert_allclose(np.float32(params["blocks"]["mlp"]["fc1"]["kernel"]).std(), 0.02,
                             rtol=0.1)


@pytest.fixture
def run_folder(tmp_path, tiny_config):
  state = jax.jit(lambda: init_state(tiny_config))()
  state = state.replace(teacher=jax.tree.map(lambda x: x + 1, state.teacher))
  with checkpoint.Writer(tmp_path, keep=1, keep_every=0) as writer:
    writer.save(7, state, {}, tiny_config)
  return tmp_path, state


def test_our_own_checkpoints(run_folder, monkeypatch):
  workdir, state = run_folder
  for path in (workdir, str(workdir / "checkpoints" / "7")):
    model = dinov3_jax.load(None, path)
    chex.assert_trees_all_equal(params_of(model), state.teacher["backbone"])
  assert (model.patch_size, model.rope.dtype, model.depth) == (8, "float32", 2)
  half = dinov3_jax.load(None, workdir, jnp.bfloat16, network="student")
  chex.assert_trees_all_equal(params_of(half), jax.tree.map(
      lambda x: x.astype(jnp.bfloat16), state.student["backbone"]))
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  params = params_of(dinov3_jax.load(None, workdir, mesh=mesh))
  chex.assert_trees_all_equal(jax.device_get(params), jax.device_get(state.teacher["backbone"]))
  assert params["blocks"]["mlp"]["fc1"]["kernel"].sharding.spec == P(None, "fsdp", "tensor")
  with pytest.raises(ValueError, match="this is no vits16: depth is 2 there, 3 here"):
    dinov3_jax.load("vits16", workdir)
  with pytest.raises(ValueError, match="has no gram_teacher: use teacher or student"):
    dinov3_jax.load(None, workdir, network="gram_teacher")


def test_what_cannot_be_read(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="there is no model 'vit': use one of vits16"):
    dinov3_jax.load("vit")
  for wrong in ("absent.pth", "", "a/b/c"):
    with pytest.raises(FileNotFoundError):
      dinov3_jax.load("vits16", tmp_path / wrong)
  (tmp_path / "w.npz").write_bytes(b"x")
  with pytest.raises(ValueError, match=r"w\.npz is no file of weights: its name must end in \.saf"):
    dinov3_jax.load("vits16", tmp_path / "w.npz")
  save_file(official("vits16"), tmp_path / "w.safetensors")
  content = (tmp_path / "w.safetensors").read_bytes()
  for damaged in (content[:-100], content[:60], content[:4], b"", bytes(8) + content):
    (tmp_path / "w.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"w\.safetensors is (no safetensors|cut off|empty)") as e:
      dinov3_jax.load("vits16", tmp_path / "w.safetensors")
    assert str(e.value).count("w.safetensors") == 1
  (tmp_path / "w.pth").write_bytes(b"x")
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ModuleNotFoundError, match=r"only PyTorch can read w\.pth: pip install torch"):
    dinov3_jax.load("vits16", tmp_path / "w.pth")


def test_shards_that_are_not_there(tmp_path):
  arrays = official("vits16")
  save_file(arrays, tmp_path / "a.safetensors")
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps(dict(weight_map=dict.fromkeys(arrays, "a.safetensors"))))
  chex.assert_trees_all_equal(params_of(dinov3_jax.load("vits16", tmp_path)),
                              random_params("vits16"))
  places = dict.fromkeys(arrays, "a.safetensors")
  for more, error in (({"x": "b.safetensors"}, FileNotFoundError), ({"x": "a.safetensors"},
                                                                    ValueError)):
    index.write_text(json.dumps(dict(weight_map=places | more)))
    with pytest.raises(error, match=r"names b\.safetensors, which|arrays that its files lack: x"):
      dinov3_jax.load("vits16", tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_what_others_wrap_around_a_model(tmp_path, suffix):
  torch = pytest.importorskip("torch")
  tensors = {f"module.backbone.{k}": torch.tensor(v) for k, v in official("vits16").items()}
  other = {name: x + 1 for name, x in tensors.items() if x.dtype == torch.float32}
  torch.save({"state_dict": {"student": other, "teacher": tensors}, "epoch": 3,
              "args": argparse.Namespace(lr=1e-3)}, tmp_path / f"w{suffix}")
  model = dinov3_jax.load("vits16", tmp_path)
  chex.assert_trees_all_equal(params_of(model), random_params("vits16"))
  torch.save([1, 2], tmp_path / f"w{suffix}")
  with pytest.raises(ValueError, match=rf"w\{suffix} holds a list, not the named arrays"):
    dinov3_jax.load("vits16", tmp_path)


def test_the_student_of_a_strangers_file(tmp_path):
  arrays = official("vits16")
  both = {f"teacher.{name}": x for name, x in arrays.items()} | {
      f"student.{name}": x + (0 if naming.BUFFERS.search(name) else 1)
      for name, x in arrays.items()}
  save_file(both, tmp_path / "w.safetensors")
  teacher, student = (params_of(dinov3_jax.load("vits16", tmp_path / "w.safetensors",
                                                network=network))
                      for network in ("teacher", "student"))
  chex.assert_trees_all_equal(teacher, random_params("vits16"))
  np.testing.assert_array_equal(student["cls_token"], teacher["cls_token"] + 1)


def test_projectors_of_others(tmp_path, caplog):
  """Laid out as EUPE's: a published architecture, and projectors that only its training used."""
  arrays = official("vits16") | {f"projectors.{i}.weight": np.ones((3, 3), "f4") for i in range(2)}
  save_file(arrays, tmp_path / "w.safetensors")
  model = dinov3_jax.load(None, tmp_path / "w.safetensors")
  chex.assert_trees_all_equal(params_of(model), random_params("vits16"))
  assert [record.getMessage() for record in caplog.records] == [
      "left out: 2 arrays of projectors, which are no part of the backbone"]


def test_the_home_directory(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  save_file(official("vits16"), tmp_path / "w.safetensors")
  for path in ("~/w.safetensors", pathlib.Path("~/w.safetensors")):
    chex.assert_trees_all_equal(params_of(dinov3_jax.load("vits16", path)),
                                random_params("vits16"))


def test_what_is_imported(run_folder):
  """The package alone imports next to nothing; loading, nothing of training."""
  script = """
import sys
import dinov3_jax
assert dir(dinov3_jax) and not {"jax", "flax", "numpy"} & set(sys.modules), "not lazy"
dinov3_jax.load(None, sys.argv[1])
assert "convnext_tiny" in dinov3_jax.VARIANTS and dinov3_jax.preprocess().size == 224
print(*(name for name in sys.modules if name.startswith(("dinov3_jax.train", "configs", "torch"))))
"""
  output = subprocess.run([sys.executable, "-c", script, run_folder[0]], capture_output=True,
                          text=True, check=True, env=os.environ | dict(JAX_PLATFORMS="cpu"))
  assert output.stdout.split() == []
  with pytest.raises(AttributeError, match="no attribute 'absent'"):
    _ = dinov3_jax.absent
