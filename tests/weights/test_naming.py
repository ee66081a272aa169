import chex
import jax
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.models.convnext import ConvNeXt
from dinov3_jax.models.head import DINOHead
from dinov3_jax.models.vit import VisionTransformer
from dinov3_jax.weights import naming

SIZE = dict(width=16, depth=3, num_heads=2, patch_size=4, storage_tokens=2)
VITS = dict(
    mlp=dict(mask_k_bias=True),
    gated=dict(ffn="swiglu", untie_global_and_local_cls_norm=True),
    bare=dict(qkv_bias=False, proj_bias=False, ffn_bias=False, storage_tokens=0, layerscale=0.0),
)


def filled(make, seed=0):
  """Parameters of a network, all different."""
  shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make)))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)


def vit(**changes):
  return filled(lambda: VisionTransformer(**SIZE | changes, rngs=nnx.Rngs(0)))


@pytest.fixture
def convnext():
  return filled(lambda: ConvNeXt((1, 2, 3, 1), (8, 4, 8, 4), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("model", VITS)
@pytest.mark.parametrize("convention", ["official", "huggingface"])
def test_round_trip_of_a_vit(model, convention):
  params = vit(**VITS[model])
  masked = VITS[model].get("mask_k_bias", False)
  arrays = naming.flatten(params, convention, masked)
  expected = params
  if convention == "huggingface":
    # What it has no place for: biases that keys do not have, and a norm that only training uses.
    if masked:
      params["blocks"]["attn"]["qkv"]["bias"][:, 1] = 0
    expected = {name: x for name, x in params.items() if name != "local_cls_norm"}
  chex.assert_trees_all_equal(naming.unflatten(arrays, expected, convention, masked), expected)


@pytest.mark.parametrize("convention", ["official", "huggingface"])
def test_round_trip_of_a_convnext(convnext, convention):
  arrays = naming.flatten(convnext, convention)
  chex.assert_trees_all_equal(naming.unflatten(arrays, convnext, convention), convnext)


def test_places_and_layouts(convnext):
  params = {"student": {"backbone": vit(), "dino_head": filled(lambda: DINOHead(
      16, prototypes=8, hidden=4, bottleneck=4, layers=3, rngs=nnx.Rngs(0)))}}
  arrays = naming.flatten(params)
  blocks = params["student"]["backbone"]["blocks"]
  qkv = blocks["attn"]["qkv"]
  same = np.testing.assert_array_equal
  same(arrays["student.backbone.blocks.2.mlp.fc1.weight"], blocks["mlp"]["fc1"]["kernel"][2].T)
  same(arrays["student.backbone.blocks.1.attn.qkv.weight"][16:32], qkv["kernel"][1, :, 1].T)
  same(arrays["student.dino_head.mlp.4.bias"], params["student"]["dino_head"]["mlp"]["2"]["bias"])
  theirs = naming.flatten(params["student"]["backbone"], "huggingface")
  same(theirs["layer.1.attention.v_proj.weight"], qkv["kernel"][1, :, 2].T)
  same(theirs["layer.1.attention.v_proj.bias"], qkv["bias"][1, 2])
  assert theirs["embeddings.mask_token"].shape == (1, 1, 16)
  assert theirs["embeddings.patch_embeddings.weight"].shape == (16, 3, 4, 4)
  arrays = naming.flatten(convnext)
  stage = convnext["stages"]["2"]
  same(arrays["stages.2.1.gamma"], stage["ls"]["gamma"][1])
  same(arrays["stages.2.2.pwconv2.weight"], stage["mlp"]["fc2"]["kernel"][2].T)
  same(arrays["stages.2.0.dwconv.weight"][:, 0], np.moveaxis(stage["dwconv"]["kernel"][0, :, :, 0],
                                                             -1, 0))
  assert all(x.flags.c_contiguous for x in arrays.values())


def test_one_error_lists_everything():
  params = vit()
  arrays = naming.flatten(params)
  del arrays["norm.bias"], arrays["blocks.0.attn.qkv.weight"]
  arrays |= {"extra": np.zeros(3), "norm.weight": np.zeros(5),
             "cls_token": np.zeros((1, 1, 16), int)}
  with pytest.raises(ValueError) as error:
    naming.unflatten(arrays, params)
  message = str(error.value)
  for part in ("missing: blocks.0.attn.qkv.weight, norm.bias", "of no use: extra",
               "norm.weight is [5], expected [16]", "cls_token is int64, expected floating point"):
    assert part in message
  assert "\n" not in message


def test_the_second_copy_of_a_convnext_norm(convnext):
  arrays = naming.flatten(convnext)
  short = {name: x for name, x in arrays.items() if not name.startswith("norms.")}
  assert len(arrays) - len(short) == 2
  chex.assert_trees_all_equal(naming.unflatten(short, convnext), convnext)
  with pytest.raises(ValueError, match=r"norms\.3\.bias is not the copy of norm\.bias"):
    naming.unflatten(arrays | {"norms.3.bias": np.ones(4, "f4")}, convnext)


def test_a_parameter_without_a_name():
  with pytest.raises(ValueError, match="blocks/new has no name elsewhere"):
    naming.flatten({"blocks": {"new": np.zeros((3, 4))}})


def test_buffers_of_the_reference(golden):
  arrays = {k.removeprefix("sd/"): v for k, v in golden("vit_mlp").items() if k.startswith("sd/")}
  settings = dict(width=64, depth=3, num_heads=2, mask_k_bias=True)
  expected = naming.buffers(settings)
  assert set(expected) == set(filter(naming.BUFFERS.search, arrays))
  for name, value in expected.items():
    np.testing.assert_allclose(arrays[name], value, rtol=1e-6)
  prefixed = {f"teacher.backbone.{name}": x for name, x in arrays.items()}
  assert naming.contradictions(prefixed, settings) == []
  name = "teacher.backbone.rope_embed.periods"
  assert naming.contradictions(prefixed, settings | dict(num_heads=4)) == [
      f"{name} contradicts the settings of this model"]
  assert len(naming.contradictions(prefixed, settings | dict(mask_k_bias=False))) == 3
