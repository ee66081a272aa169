import logging

import chex
import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import dinov3_jax
from dinov3_jax.models.variants import REFERENCE_ARCHITECTURES, VARIANTS, build, differences
from dinov3_jax.weights import architecture, naming

# No row of the table.
VIT = dict(width=128, depth=3, num_heads=2, patch_size=4, storage_tokens=4, mask_k_bias=True,
           norm_eps=1e-5, rope=dict(base=100.0))
CONVNEXT = dict(depths=(1, 2, 1, 3), dims=(4, 8, 12, 16))
CHANGES = dict(
    plain={}, gated=dict(ffn="swiglu", ffn_ratio=3.0), aligned=dict(ffn="swiglu", ffn_align=64),
    wide=dict(ffn_ratio=3.777777778), no_storage=dict(storage_tokens=0),
    k_bias=dict(mask_k_bias=False), no_biases=dict(qkv_bias=False, proj_bias=False, ffn_bias=False),
    rmsnorm=dict(norm="rmsnorm"), no_layerscale=dict(layerscale=0.0),
    norms=dict(untie_cls_and_patch_norms=True, untie_global_and_local_cls_norm=True),
    channels=dict(in_channels=5), conv=dict(stem="conv"))
# What only the reference's names and files can show.
OFFICIAL = dict(heads=dict(num_heads=8), base=dict(rope=dict(base=30.0)))


def random_params(settings, seed=0):
  shapes = architecture.abstract(settings)[1]
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)
  if settings.get("mask_k_bias") and settings.get("qkv_bias", True):
    params["blocks"]["attn"]["qkv"]["bias"][:, 1] = 0
  return params


def arrays_of(settings, convention="official", seed=0, buffers=True):
  arrays = naming.flatten(random_params(settings, seed), convention,
                          settings.get("mask_k_bias", False))
  extra = buffers and convention == "official" and "depths" not in settings
  return arrays | (naming.buffers(settings) if extra else {})


@pytest.mark.parametrize("change", CHANGES | OFFICIAL)
def test_settings_from_the_references_names(change):
  settings = VIT | (CHANGES | OFFICIAL)[change]
  found = architecture.identify(arrays_of(settings), "official")
  assert differences(found, settings) == []
  assert found["untie_global_and_local_cls_norm"] == (change == "norms")


@pytest.mark.parametrize("change", sorted(CHANGES.keys() - {"norms", "rmsnorm", "conv"}))
def test_settings_from_names_of_hugging_face(change):
  settings = VIT | CHANGES[change]
  found = architecture.identify(arrays_of(settings, "huggingface"), "huggingface")
  assert differences(found, settings) == []


@pytest.mark.parametrize("convention", ["official", "huggingface"])
def test_settings_of_a_convnext(convention):
  found = architecture.identify(arrays_of(CONVNEXT, convention), convention)
  assert differences(found, CONVNEXT) == []


def test_files_without_buffers():
  """Masked keys are then told by their zeros; RoPE and the heads are as in the released models."""
  found = architecture.identify(arrays_of(VIT, buffers=False), "official")
  assert differences(found, VIT) == []
  biased = VIT | dict(mask_k_bias=False)
  assert differences(architecture.identify(arrays_of(biased, buffers=False), "official"),
                     biased) == []


def test_what_is_assumed_is_said(caplog):
  with caplog.at_level(logging.WARNING):
    architecture.identify(arrays_of(VIT), "official")
  (record,) = caplog.records
  message = record.getMessage()
  assert message.startswith("of no published model: taken from the shapes of the arrays")
  assert "'width': 128" in message and "'num_heads': 2" in message and "\n" not in message


def test_the_table_comes_first(monkeypatch, caplog):
  row = VARIANTS["vits16"]
  settings = row.settings | dict(width=128, depth=2, num_heads=4)
  monkeypatch.setitem(VARIANTS, "vits16", type(row)(settings, row.releases))
  arrays = arrays_of(settings, buffers=False)
  assert differences(architecture.identify(arrays, "official"), settings) == []
  assert not caplog.records


@pytest.mark.parametrize("name", REFERENCE_ARCHITECTURES)
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_sizes_of_the_reference(name, ffn):
  """At their full size, by shapes that take no memory."""
  settings = VARIANTS["vits16"].settings | REFERENCE_ARCHITECTURES[name] | dict(
      patch_size=16, ffn=ffn)
  wanted = architecture.entries_of(architecture.abstract(settings)[1], "official", settings)
  arrays = {entry.name: np.broadcast_to(np.float32(0), entry.theirs) for entry in wanted}
  arrays["rope_embed.periods"] = naming.buffers(settings | dict(depth=1))["rope_embed.periods"]
  found = architecture.identify(arrays, "official")
  assert differences(found, settings) == []
  assert found["width"] // found["num_heads"] == (128 if name == "vit_7b" else 64)


def test_weights_of_others(tmp_path):
  """Laid out as LingBot-Vision's: a wrapper, registers, masked keys, and no row of the table."""
  torch = pytest.importorskip("torch")
  settings = VIT | dict(width=192, depth=4, num_heads=3, patch_size=16, ffn="swiglu", ffn_align=8)
  tensors = {name: torch.tensor(x) for name, x in arrays_of(settings).items()}
  params = random_params(settings)
  for key in ("model", "backbone"):
    torch.save({key: tensors, "iteration": 3}, tmp_path / "w.pth")
    model = dinov3_jax.load(None, tmp_path / "w.pth")
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model)), params)
    assert model.rope.base == 100.0 and model.rope.head_dim == 64
  names = {f"backbone.{name}": x for name, x in arrays_of(settings).items()}
  save_file(names, tmp_path / "w.safetensors")
  model = dinov3_jax.load(None, tmp_path / "w.safetensors")
  chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model)), params)


@pytest.mark.parametrize("drop, replace, said", [
    ("cls_token", {}, "missing: cls_token"),
    ("patch_embed.proj.weight", {}, "missing: patch_embed.proj.weight"),
    ("blocks.0.mlp.fc1.weight", {}, "missing: blocks.0.mlp.fc1.weight"),
    (None, {"cls_token": np.zeros(8)}, r"cls_token is \[8\], expected 3 axes"),
    (None, {"patch_embed.proj.weight": np.zeros((128, 3, 4, 8))}, "patches must be square"),
    (None, {"rope_embed.periods": np.ones(7)}, r"periods is \[7\], which does not fit a width"),
    (None, {"rope_embed.periods": np.zeros(16)}, "are no powers of a base"),
    (None, {"cls_token": np.zeros((10**9, 0, 10**9))}, r"cls_token is \[1000000000, 0, 1000000000"),
])
def test_what_cannot_be_told(drop, replace, said):
  arrays = arrays_of(VIT) | replace
  arrays.pop(drop, None)
  with pytest.raises(ValueError, match="of no published model, and .*" + said + ".*; say which"):
    architecture.identify(arrays, "official")


def test_heads_that_cannot_be_told():
  settings = VIT | dict(width=32)
  with pytest.raises(ValueError, match="width of 32 is no whole number of heads of 64; say which"):
    architecture.identify(arrays_of(settings, buffers=False), "official")


def test_conventions():
  for settings in (VIT, CONVNEXT):
    for convention in ("official", "huggingface"):
      assert architecture.convention_of(arrays_of(settings, convention)) == convention


def test_the_networks_are_those_of_build():
  graph, shapes = architecture.abstract(VIT)
  model = nnx.merge(graph, random_params(VIT))
  fresh = nnx.eval_shape(lambda: build(VIT, rngs=nnx.Rngs(0)))
  chex.assert_trees_all_equal_shapes(nnx.state(model), nnx.state(fresh))
  assert len(architecture.entries_of(shapes, "official", VIT)) == len(naming.flatten(
      random_params(VIT)))
