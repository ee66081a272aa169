import jax
import pytest
from flax import nnx

from dinov3_jax.models.variants import REFERENCE_ARCHITECTURES
from dinov3_jax.models.vit import VisionTransformer

RELEASED = dict(storage_tokens=4, mask_k_bias=True, norm_eps=1e-5)
SWIGLU = dict(ffn="swiglu", ffn_ratio=6.0)
UNTIED = dict(untie_global_and_local_cls_norm=True)


@pytest.mark.parametrize("sizes, changes, count", [
    ("vit_small", {}, 21_601_152),
    ("vit_small", SWIGLU, 28_697_472),
    ("vit_base", {}, 85_669_632),
    ("vit_large", {}, 303_154_176),
    ("vit_large", UNTIED, 303_156_224),
    ("vit_large", SWIGLU, 403_915_776),
    ("vit_huge2", SWIGLU, 840_633_600),
    ("vit_7b", UNTIED | dict(ffn="swiglu", ffn_align=64, qkv_bias=False), 6_716_043_264),
])
def test_parameter_counts_of_the_released_models(sizes, changes, count):
  settings = RELEASED | REFERENCE_ARCHITECTURES[sizes] | changes
  model = nnx.eval_shape(lambda: VisionTransformer(**settings, rngs=nnx.Rngs(0)))
  assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == count


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
