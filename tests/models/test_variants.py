import jax
import pytest
from flax import nnx

from dinov3_jax.models.convnext import ConvNeXt
from dinov3_jax.models.layers import hidden_width
from dinov3_jax.models.variants import (
    REFERENCE_ARCHITECTURES,
    VARIANTS,
    build,
    channels,
    differences,
    feed_forward,
    make_model,
    variant,
)
from dinov3_jax.models.vit import VisionTransformer
from dinov3_jax.weights import naming

SAT_LARGE = VARIANTS["vitl16"].releases["sat493m"].changes


@pytest.mark.parametrize("name, changes, count, keys", [
    ("vits16", {}, 21_601_152, 188),
    ("vits16plus", {}, 28_697_472, 212),
    ("vitb16", {}, 85_669_632, 188),
    ("vitl16", {}, 303_154_176, 368),
    ("vitl16", SAT_LARGE, 303_156_224, 370),
    ("vitl16plus", {}, 403_915_776, 416),
    ("vith16plus", {}, 840_633_600, 552),
    ("vit7b16", {}, 6_716_043_264, 610),
    ("convnext_tiny", {}, 27_820_128, 182),
    ("convnext_small", {}, 49_454_688, 344),
    ("convnext_base", {}, 87_566_464, 344),
    ("convnext_large", {}, 196_230_336, 344),
])
def test_counts_of_the_published_files(name, changes, count, keys):
  """Parameters, and what the reference's file holds: buffers and second copies, too."""
  model = nnx.eval_shape(lambda: make_model(name, rngs=nnx.Rngs(0), **changes))
  shapes = nnx.to_pure_dict(nnx.state(model))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == count
  buffers = {} if "convnext" in name else naming.buffers(VARIANTS[name].settings)
  assert len({e.name for e in naming.entries(shapes)} | set(buffers)) == keys


def test_the_table():
  assert len(VARIANTS) == 11
  releases = [(name, data, r) for name, v in VARIANTS.items() for data, r in v.releases.items()]
  assert len({r.digest for *_, r in releases}) == len(releases) == 13
  for name, data, release in releases:
    expected = f"facebook/dinov3-{name.replace('_', '-')}-pretrain-{data}"
    assert release.repo == (None if name == "vitl16plus" else expected)
  assert {name for name, data, _ in releases if data == "sat493m"} == {"vitl16", "vit7b16"}


def test_what_the_reference_hub_builds():
  for name in VARIANTS:
    model = nnx.eval_shape(lambda name=name: make_model(name, rngs=nnx.Rngs(0)))
    if isinstance(model, ConvNeXt):
      assert model.norm.epsilon == 1e-6 and model.patch_size is None
      continue
    assert isinstance(model, VisionTransformer)
    assert model.norm.epsilon == model.blocks.norm1.epsilon == 1e-5
    assert model.rope.dtype == "float32" and model.rope.rescale == 2.0 and model.rope.base == 100
    assert model.storage_tokens.shape[1] == 4 and model.drop_path == 0
    assert (model.blocks.attn.qkv.bias is None) == (name == "vit7b16")
    assert model.blocks.attn.mask_k_bias == (name != "vit7b16")
    assert (model.local_cls_norm is not None) == (name == "vit7b16")
    hidden = model.blocks.mlp.w3 if "w3" in vars(model.blocks.mlp) else model.blocks.mlp.fc2
    assert hidden.kernel.shape[1] == dict(vits16=1536, vits16plus=1536, vitb16=3072, vitl16=4096,
                                          vitl16plus=4096, vith16plus=5120, vit7b16=8192)[name]


def test_a_model_runs():
  assert isinstance(build(dict(depths=(1, 1, 1, 1), dims=(4, 4, 4, 4)), rngs=nnx.Rngs(0)), ConvNeXt)
  model = nnx.eval_shape(lambda: make_model("vits16", rngs=nnx.Rngs(0), depth=2))
  out = nnx.eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct((2, 32, 48, 3), "f4"))
  assert {k: v.shape for k, v in out.items()} == dict(
      cls=(2, 384), storage=(2, 4, 384), patches=(2, 6, 384))


def test_unknown_names():
  with pytest.raises(ValueError, match="no model 'vitx16': use one of vits16, vits16plus"):
    variant("vitx16")


def test_differences():
  small, plus = VARIANTS["vits16"].settings, VARIANTS["vits16plus"].settings
  unseen = dict(drop_path=0.3, layerscale=0.1, untie_global_and_local_cls_norm=True, ffn_align=64,
                rope=dict(base=100.0, jitter=2.0, dtype="bfloat16"))
  assert differences(small, small | unseen) == []
  assert differences(small, plus) == ["ffn is mlp there, swiglu here"]
  assert differences(small, small | dict(ffn_ratio=3.0, rope=dict(base=10.0))) == [
      "hidden_width is 1536 there, 1152 here", "rope.base is 100.0 there, 10.0 here"]
  assert differences(small, small | dict(qkv_bias=False))[0] == "qkv_bias is True there, False here"
  tiny, large = (VARIANTS[f"convnext_{s}"].settings for s in ("tiny", "large"))
  assert len(differences(tiny, large)) == 2
  assert differences(tiny, tiny | dict(patch_size=16, depths=[3, 3, 9, 3])) == []
  assert "depths is unknown there, (3, 3, 9, 3) here" in differences(small, tiny)


@pytest.mark.parametrize("name, width, depth, heads, ratio", [
    ("vit_small", 384, 12, 6, 4.0),
    ("vit_base", 768, 12, 12, 4.0),
    ("vit_large", 1024, 24, 16, 4.0),
    ("vit_so400m", 1152, 27, 18, 3.777777778),
    ("vit_huge2", 1280, 32, 20, 4.0),
    ("vit_giant2", 1536, 40, 24, 4.0),
    ("vit_7b", 4096, 40, 32, 3.0),
])
def test_what_the_references_names_mean(name, width, depth, heads, ratio):
  sizes = dict(ffn_ratio=4.0) | REFERENCE_ARCHITECTURES[name]
  assert sizes == dict(width=width, depth=depth, num_heads=heads, ffn_ratio=ratio)


@pytest.mark.parametrize("kind", ["mlp", "swiglu"])
@pytest.mark.parametrize("width, hidden", [(64, 100), (64, 101), (49, 77), (384, 1536), (192, 513),
                                           (1536, 4096), (1152, 4352), (7, 1)])
def test_feed_forward_gives_its_width_back(kind, width, hidden):
  s = feed_forward(kind, width, hidden)
  assert hidden_width(s["ffn"], width, s["ffn_ratio"], s["ffn_align"]) == hidden


@pytest.mark.parametrize("settings", [
  dict(width=8, depth=1, num_heads=2, patch_size=4),
  dict(width=8, depth=1, num_heads=2, patch_size=4, stem="conv"),
  dict(depths=(1, 1, 1, 1), dims=(4, 4, 4, 4))])
def test_channels(settings):
  for n in (1, 3, 4):
    model = nnx.eval_shape(lambda n=n: build(settings | dict(in_channels=n), rngs=nnx.Rngs(0)))
    assert channels(model) == n
