import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.models import eight_bits
from dinov3_jax.models.layers import Block
from dinov3_jax.models.products import products_saveable
from dinov3_jax.models.rope import Rope
from dinov3_jax.models.vit import VisionTransformer

LARGEST = {"fp8": 448.0, "int8": 127.0}


def normal(seed, *shape, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


def rounded(kind, x, axes):
  """In NumPy: what x becomes if its largest magnitude over these axes takes the largest number."""
  scale = np.abs(x).max(axes, keepdims=True) / np.float32(LARGEST[kind])
  x = np.float32(x) / scale
  return scale * (x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32) if kind == "fp8"
                  else np.round(x))


@pytest.mark.parametrize("kind", eight_bits.TYPES)
@pytest.mark.parametrize("shape", [(24, 8), (24, 3, 8)], ids=str)
def test_products_and_their_gradients(kind, shape):
  """Row by row forward; backward a row of the gradient and all weights; weights' own in full."""
  x, w = np.array(normal(0, 2, 5, 24)), np.array(normal(1, *shape))
  x *= np.geomspace(0.01, 100, 10, dtype=np.float32).reshape(2, 5, 1)  # rows of all sizes
  g = np.array(normal(2, 2, 5, *shape[1:]))
  y, pullback = jax.vjp(lambda x, w: eight_bits.dot(eight_bits.TYPES[kind], x, w,
                                                    (((2,), (0,)), ((), ()))), x, w)
  np.testing.assert_allclose(
    y, np.tensordot(rounded(kind, x, -1), rounded(kind, w, 0), 1), rtol=1e-4, atol=1e-4)
  dx, dw = pullback(g)
  outer = tuple(range(2, g.ndim))
  expected = np.tensordot(rounded(kind, g, outer), rounded(kind, w, None), (
    outer, tuple(range(1, w.ndim))))
  np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(dw, np.tensordot(x, g, ((0, 1), (0, 1))), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", eight_bits.TYPES)
@pytest.mark.parametrize("value", [0.0, 1e-25, 1e30])
def test_the_smallest_and_the_largest_numbers(kind, value):
  x, w = jnp.full((3, 16), value), normal(1, 16, 4)
  y = eight_bits.dot(eight_bits.TYPES[kind], x, w, (((1,), (0,)), ((), ())))
  assert np.isfinite(y).all()
  np.testing.assert_array_less(np.abs(y - x @ w) / 16, 0.05 * value + 1e-40)


@pytest.mark.parametrize("kind", eight_bits.TYPES)
def test_small_gradients_are_as_precise_as_others(kind):
  x, w, g = normal(0, 3, 16), normal(1, 16, 8), normal(2, 3, 8)
  multiply = lambda x: eight_bits.dot(eight_bits.TYPES[kind], x, w, (((1,), (0,)), ((), ())))
  small, = jax.vjp(multiply, x)[1](1e-15 * g)
  plain, = jax.vjp(multiply, x)[1](g)
  np.testing.assert_allclose(small, 1e-15 * plain, rtol=1e-4, atol=1e-20)


def test_other_products_are_refused():
  with pytest.raises(ValueError, match="not the product of a linear layer"):
    eight_bits.dot(jnp.int8, normal(0, 3, 4), normal(1, 5, 4), (((1,), (1,)), ((), ())))


@pytest.mark.parametrize("kind", eight_bits.TYPES)
def test_blocks_alone_are_changed(kind):
  model = VisionTransformer(width=32, depth=2, num_heads=2, patch_size=8, stem="conv",
                            layerscale=1.0, rngs=nnx.Rngs(0))
  graph, params = nnx.split(model)
  graphs = {"backbone": graph}
  assert eight_bits.choose(graphs, {"backbone": params}, "") is graphs
  changed = nnx.merge(eight_bits.choose(graphs, {"backbone": params}, kind)["backbone"], params)
  plain = jax.lax.dot_general
  assert changed.patch_embed.proj.dot_general is plain
  for layer in (changed.blocks.attn.qkv, changed.blocks.attn.proj, changed.blocks.mlp.fc1,
                changed.blocks.mlp.fc2):
    assert layer.dot_general is not plain
  images = normal(3, 2, 16, 16, 3)
  ours, exact = (m.forward_crops(images)[0]["patches"] for m in (changed, model))
  assert 1e-6 < np.abs(ours - exact).mean() < 0.05


@pytest.mark.parametrize("kind", eight_bits.TYPES)
def test_rematerialisation_keeps_each_product_once(kind):
  block = Block(width=16, num_heads=2, ffn="mlp", ffn_ratio=2.0, ffn_align=8, qkv_bias=True,
                proj_bias=True, ffn_bias=True, mask_k_bias=False, norm="layernorm", norm_eps=1e-6,
                layerscale=1.0, rngs=nnx.Rngs(0))
  block.set_attributes(dot_general=lambda *x, **y: eight_bits.dot(eight_bits.TYPES[kind], *x, **y))
  graph, params = nnx.split(block)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  run = jax.checkpoint(lambda params, x: nnx.merge(graph, params)(x, Rope(8).tables(1, 4)),
                       policy=products_saveable)
  x = normal(0, 2, 5, 16, dtype=jnp.bfloat16)
  kept = [x for x in jax.tree.leaves(jax.vjp(run, params, x)[1]) if x.shape[:2] == (2, 5)]
  # The block's input; queries, keys and values; what the projection and both layers give.
  assert sorted(x.size // (2 * 5 * 16) for x in kept) == [1, 1, 1, 1, 1, 1, 2]
  assert all(x.dtype.itemsize == 2 for x in kept)
  chex.assert_trees_all_equal(run(params, x), nnx.merge(graph, params)(x, Rope(8).tables(1, 4)))
