import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.models import products
from dinov3_jax.models.head import DINOHead
from dinov3_jax.models.layers import Block, ConvStem
from dinov3_jax.models.rope import Rope

LINEAR = (((1,), (0,)), ((), ()))


@pytest.fixture(params=[False, True], ids=["without instructions", "with instructions"])
def instructions(request, monkeypatch):
  """Takes this CPU for one without, and for one with, instructions for bfloat16."""
  monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: request.param)
  return request.param


def make_block(ffn="mlp"):
  return Block(width=16, num_heads=2, ffn=ffn, ffn_ratio=2.0, ffn_align=8, qkv_bias=True,
               proj_bias=True, ffn_bias=True, mask_k_bias=False, norm="layernorm", norm_eps=1e-6,
               layerscale=1.0, rngs=nnx.Rngs(0))


def halved(module):
  """A copy whose parameters are bfloat16."""
  graph, params = nnx.split(module)
  return nnx.merge(graph, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))


def normal(seed, *shape, dtype=jnp.bfloat16):
  return jax.random.normal(jax.random.key(seed), shape, dtype)


@pytest.mark.parametrize("cpuinfo, has", [
  ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
  ("processor\t: 0\nflags\t\t: fpu sse2 amx_bf16\n", True),
  ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16x\nbugs\t\t: bf16\n", False),
  ("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n", True),
  ("processor\t: 0\nFeatures\t: fp asimd\n\nprocessor\t: 1\nFeatures\t: bf16\n", False),
  ("", False)])
def test_what_a_cpu_says_of_itself(cpuinfo, has):
  assert products.has_instructions(cpuinfo) == has


def test_a_machine_that_says_nothing_has_none(monkeypatch):
  def absent(path):
    raise FileNotFoundError(path)

  monkeypatch.setattr("pathlib.Path.read_text", absent)
  products.cpu_multiplies_bfloat16.cache_clear()
  try:
    assert products.cpu_multiplies_bfloat16() is False
  finally:
    products.cpu_multiplies_bfloat16.cache_clear()


def test_inference_sums_bfloat16_in_float32(instructions):
  x, w = normal(0, 8, 512), normal(1, 512, 16)
  run = jax.jit(lambda x, w: products.inference_dot(x, w, LINEAR))
  y = run(x, w)
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(y, np.float64(x) @ np.float64(w), rtol=1e-5, atol=1e-4)
  product, = (x for x in run.lower(x, w).as_text().splitlines() if "dot_general" in x)
  factor = "bf16" if instructions else "f32"
  assert f"(tensor<8x512x{factor}>, tensor<512x16x{factor}>) -> tensor<8x16xf32>" in product


@pytest.mark.parametrize("dot", [products.inference_dot, products.cpu_dot])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_a_block_rounds_what_a_product_sums(instructions, ffn, dot):
  block, rope = make_block(ffn), Rope(8).tables(1, 4)
  x = normal(0, 2, 5, 16, dtype=jnp.float32)
  expected, half = block(x, rope), halved(block)
  plain = half(x.astype(jnp.bfloat16), rope)
  half.set_attributes(dot_general=dot)
  ours = half(x.astype(jnp.bfloat16), rope)
  assert ours.dtype == jnp.bfloat16
  error = lambda y: np.abs(np.float32(y) - expected).mean()
  assert error(ours) < min(1.1 * error(plain), 0.02)


@pytest.mark.parametrize("module, shape", [
  (lambda: DINOHead(16, prototypes=8, hidden=16, bottleneck=8, layers=3, rngs=nnx.Rngs(0)),
   (4, 16)),
  (lambda: ConvStem(4, 3, 16, rngs=nnx.Rngs(0)), (2, 8, 8, 3))])
def test_networks_beside_the_blocks_keep_their_dtype(module, shape):
  half = halved(module())
  expected = half(normal(0, *shape))
  half.set_attributes(dot_general=products.cpu_dot)
  y = half(normal(0, *shape))
  assert y.dtype in (jnp.bfloat16, jnp.float32) and y.shape == expected.shape
  np.testing.assert_allclose(np.float32(y), np.float32(expected), atol=0.03)


@pytest.mark.parametrize("shapes, dimensions", [
  (((2, 5, 6), (6, 3)), (((2,), (0,)), ((), ()))),
  (((2, 5, 6), (6, 3, 4)), (((2,), (0,)), ((), ()))),
  (((6, 7), (3, 6)), (((0,), (1,)), ((), ()))),
  (((2, 5, 9), (9, 3)), (((2,), (0,)), ((), ()))),
  (((2, 5, 6), (6, 3, 5)), (((2, 1), (0, 2)), ((), ())))])
def test_gradients_are_those_of_float32(shapes, dimensions):
  lhs, rhs = (normal(i, *shape) for i, shape in enumerate(shapes))
  y = products.cpu_dot(lhs, rhs, dimensions)
  cotangent = normal(2, *y.shape).astype(jnp.float32)
  ours = jax.vjp(lambda *x: products.cpu_dot(*x, dimensions), lhs, rhs)
  theirs = jax.vjp(lambda *x: jax.lax.dot_general(*x, dimensions), *(
    x.astype(jnp.float32) for x in (lhs, rhs)))
  assert ours[0].dtype == jnp.float32
  np.testing.assert_allclose(ours[0], theirs[0], rtol=2**-8, atol=1e-5)
  np.testing.assert_array_equal(ours[0], ours[0].astype(jnp.bfloat16).astype(jnp.float32))
  for a, b in zip(ours[1](cotangent), theirs[1](cotangent)):
    assert a.dtype == jnp.bfloat16 and a.shape == b.shape
    np.testing.assert_allclose(np.float32(a), b, rtol=2**-7, atol=1e-2)


def test_every_product_of_a_block_and_its_gradient_is_of_bfloat16():
  """XLA multiplies in bfloat16 on a CPU only where the factors are, and the result is float32."""
  graph, params = nnx.split(halved(make_block()))
  graph = products._with_dot(graph, params, products.cpu_dot)
  loss = lambda params, x: nnx.merge(graph, params)(x, Rope(8).tables(1, 4)).astype("float32").sum()
  text = jax.jit(jax.grad(loss, (0, 1))).lower(params, normal(0, 2, 5, 16)).as_text()
  lines = [x for x in text.splitlines() if "dot_general" in x and "batching_dims" not in x]
  assert len(lines) == 3 * 4  # qkv, proj, fc1, fc2: forward, and the gradients of both factors
  types = re.compile(r"\(tensor<[^>]*xbf16>, tensor<[^>]*xbf16>\) -> tensor<[^>]*xf32>")
  assert all(types.search(line) for line in lines)


@pytest.mark.parametrize("dtype, dot", [
  ("float32", jax.lax.dot_general), ("bfloat16", jax.lax.dot_general),
  ("bfloat16", products.cpu_dot)])
def test_rematerialisation_keeps_products_in_their_factors_dtype(dtype, dot):
  graph, params = nnx.split(make_block())
  graph = products._with_dot(graph, jax.tree.map(lambda x: x, params), dot)
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  run = jax.checkpoint(lambda params, x: nnx.merge(graph, params)(x, Rope(8).tables(1, 4)),
                       policy=products.products_saveable)
  pull = jax.vjp(run, params, normal(0, 2, 5, 16, dtype=dtype))[1]
  kept = [x for x in jax.tree.leaves(pull) if x.shape[:2] == (2, 5)]
  # The block's input, queries, keys and values after the rotation in place of their product, and
  # what the projection and both layers of the MLP give.
  assert sorted(x.size // (2 * 5 * 16) for x in kept) == [1, 1, 1, 1, 1, 1, 2]
  assert all(x.dtype.itemsize == jnp.dtype(dtype).itemsize for x in kept)


def test_the_gradients_of_a_block_that_keeps_products_are_those_of_float32():
  block, rope = make_block(), Rope(8).tables(1, 4)
  graph, params = nnx.split(block)
  x, cotangent = (normal(i, 2, 5, 16, dtype=jnp.float32) for i in range(2))

  def gradients(dot, dtype):
    changed = products._with_dot(graph, params, dot)
    apply = jax.checkpoint(lambda params, x: nnx.merge(changed, params)(x, rope),
                           policy=products.products_saveable)
    half = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)
    pull = jax.vjp(apply, half(params), half(x))[1]
    return pull(cotangent.astype(dtype))

  exact = gradients(jax.lax.dot_general, "float32")
  plain = jax.vjp(lambda params, x: nnx.merge(graph, params)(x, rope), params, x)[1](cotangent)
  chex.assert_trees_all_close(exact, plain, rtol=1e-5, atol=1e-6)
  for a, b in zip(jax.tree.leaves(gradients(products.cpu_dot, "bfloat16")), jax.tree.leaves(exact)):
    # The gradient of the keys' bias is zero, but for rounding.
    assert np.linalg.norm(np.float32(a) - b) < 0.03 * np.linalg.norm(b) + 1e-3


def test_batch_dimensions_are_refused():
  with pytest.raises(ValueError, match="batch dimensions"):
    products.cpu_dot(normal(0, 2, 3, 4), normal(1, 2, 4, 5), (((2,), (1,)), ((0,), (0,))))


def test_only_training_in_bfloat16_on_such_a_cpu_is_changed(instructions):
  graph, params = nnx.split(make_block())
  graphs, shapes = {"backbone": graph}, {"backbone": params}
  of = lambda *x: products.for_training(graphs, shapes, *x)["backbone"]
  for platform, dtype in (("tpu", jnp.bfloat16), ("gpu", jnp.bfloat16), ("cpu", jnp.float32)):
    assert of(platform, jnp.dtype(dtype)) is graph
  changed = nnx.merge(of("cpu", jnp.dtype(jnp.bfloat16)), params)
  assert (changed.mlp.fc1.dot_general is products.cpu_dot) == instructions
