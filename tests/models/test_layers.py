import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.models.layers import (
  Block,
  ConvStem,
  PatchEmbed,
  make_ffn,
  make_norm,
  residual,
)
from dinov3_jax.models.rope import Rope

KEYS = jax.random.split(jax.random.key(0), 2000)


def updates(rows, rate, shards=1, keys=KEYS):
  """What a branch of ones adds to each row, under every key: [keys, rows]."""
  x = jnp.zeros((rows, 2, 3))
  run = jax.jit(jax.vmap(lambda key: residual(x, jnp.ones_like, rate, key, shards)[:, 0, 0]))
  return np.asarray(run(keys))


@pytest.mark.parametrize("rows, rate, keep", [(32, 0.4, 19), (8, 0.3, 5), (2, 0.9, 1), (4, 0.5, 2)])
def test_an_exact_number_of_rows_is_kept(rows, rate, keep):
  added = updates(rows, rate)
  assert ((added > 0).sum(1) == keep).all()
  np.testing.assert_allclose(added[added > 0], rows / keep, rtol=1e-6)
  # Each row is kept as often as any other, so that on average the whole branch is added.
  error = np.sqrt((rows / keep - 1) / len(KEYS))
  assert np.abs(added.mean(0) - 1).max() < 5 * error


def test_rows_are_drawn_within_their_shard():
  added = updates(12, 0.5, shards=3)
  kept = (added > 0).reshape(-1, 3, 4)
  assert (kept.sum(2) == 2).all()
  # Independently: two shards keep the same rows one time in six.
  assert 0.12 < (kept[:, 0] == kept[:, 1]).all(1).mean() < 0.22


@pytest.mark.parametrize("shards", [1, 2])
def test_kept_rows_go_through_the_branch_in_their_place(shards):
  x = jax.random.normal(jax.random.key(1), (8, 2, 3))
  branch = lambda x: jnp.sin(3 * x)
  y = np.asarray(jax.jit(lambda key: residual(x, branch, 0.5, key, shards))(KEYS[0]))
  kept = (y != x).any((1, 2))
  assert kept.sum() == 4
  np.testing.assert_allclose(y[kept], (x + 2 * branch(x))[kept], rtol=1e-6)
  np.testing.assert_array_equal(y[~kept], x[~kept])


def test_no_rate_or_no_key_means_every_row():
  x = jax.random.normal(jax.random.key(1), (4, 2, 3))
  for rate, key in [(0.0, KEYS[0]), (0.5, None)]:
    np.testing.assert_array_equal(residual(x, jnp.sin, rate, key), x + jnp.sin(x))


def test_the_work_falls_with_the_rate():
  weights = jnp.ones((64, 64))
  branch = lambda x: x @ weights @ weights

  def flops(rate):
    run = jax.jit(lambda x, key: residual(x, branch, rate, key))
    return run.lower(jnp.ones((16, 8, 64)), KEYS[0]).compile().cost_analysis()["flops"]

  whole = flops(0.0)
  for rate, keep in [(0.25, 12), (0.5, 8), (0.75, 4)]:
    np.testing.assert_allclose(flops(rate) / whole, keep / 16, rtol=0.05)


def make_block(**changes):
  settings = dict(width=16, num_heads=2, ffn="mlp", ffn_ratio=2.0, ffn_align=8, qkv_bias=True,
                  proj_bias=True, ffn_bias=True, mask_k_bias=False, norm="layernorm",
                  norm_eps=1e-6, layerscale=1.0)
  return Block(**settings | changes, rngs=nnx.Rngs(0))


def test_the_two_branches_of_a_block_draw_apart():
  block = make_block()
  # Two biases instead of two branches: attention adds (1, 0, ...), the MLP (0, 1, 0, ...).
  graph, params = nnx.split(block)
  params = jax.tree.map(jnp.zeros_like, params)
  params["ls1"]["gamma"] = params["ls2"]["gamma"] = nnx.Param(jnp.ones(16))
  params["attn"]["proj"]["bias"] = nnx.Param(jnp.eye(16)[0])
  params["mlp"]["fc2"]["bias"] = nnx.Param(jnp.eye(16)[1])
  block = nnx.merge(graph, params)
  x, rope = jnp.zeros((4, 1, 16)), Rope(8).tables(1, 1)
  run = jax.jit(jax.vmap(lambda key: block(x, rope, drop_path=0.5, key=key)[:, 0]))
  attention, mlp = np.moveaxis(np.asarray(run(KEYS))[..., :2] > 0, -1, 0)
  assert (attention.sum(1) == 2).all() and (mlp.sum(1) == 2).all()
  assert 0.12 < (attention == mlp).all(1).mean() < 0.22


@pytest.mark.parametrize("ratio, width, align, hidden", [
    (6.0, 384, 8, 1536), (6.0, 1024, 8, 4096), (6.0, 1280, 8, 5120), (3.0, 4096, 64, 8192),
    (3.777777778, 1152, 8, 2904), (4.0, 1024, 64, 2752), (4.0, 64, 128, 256)])
def test_swiglu_width(ratio, width, align, hidden):
  ffn = nnx.eval_shape(lambda: make_ffn("swiglu", width, ratio, align, True, rngs=nnx.Rngs(0)))
  assert ffn.w1.kernel.shape == ffn.w2.kernel.shape == (width, hidden)
  assert ffn.w3.kernel.shape == (hidden, width)


def test_mlp_width():
  ffn = nnx.eval_shape(lambda: make_ffn("mlp", 1152, 3.777777778, 8, True, rngs=nnx.Rngs(0)))
  assert ffn.fc1.kernel.shape == (1152, 4352)


def test_masked_key_bias_counts_as_zero_and_gets_no_gradient():
  x, rope = jax.random.normal(jax.random.key(1), (2, 3, 16)), Rope(8).tables(1, 2)

  def loss(mask, key_bias):
    block = make_block(mask_k_bias=mask)
    graph, params = nnx.split(block)

    def of_bias(bias):
      params["attn"]["qkv"]["bias"] = nnx.Param(bias)
      return jnp.sum(jnp.sin(nnx.merge(graph, params)(x, rope)))

    bias = jnp.stack([jnp.full(16, 0.3), jnp.full(16, key_bias), jnp.full(16, -0.2)])
    return jax.jit(jax.value_and_grad(of_bias))(bias)

  (zero, _), (value, gradient), (unmasked, _) = loss(False, 0.0), loss(True, 5.0), loss(False, 5.0)
  np.testing.assert_allclose(value, zero, rtol=1e-6)
  np.testing.assert_array_equal(gradient[1], 0)
  assert np.abs(np.asarray(gradient)[[0, 2]]).min() > 0
  assert abs(unmasked - zero) > 1e-4  # RoPE turns some keys, so that a bias would count


def test_patch_embed_is_a_convolution_that_drops_the_rest():
  embed = PatchEmbed(4, 3, 6, rngs=nnx.Rngs(0))
  images = jax.random.normal(jax.random.key(1), (2, 10, 15, 3))
  expected = jax.lax.conv_general_dilated(
      images, embed.kernel[...], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  expected = (expected + embed.bias[...]).reshape(2, 2 * 3, 6)
  np.testing.assert_allclose(jax.jit(lambda x: embed(x))(images), expected, atol=1e-6)


def test_conv_stem_gives_a_token_for_each_patch_and_sees_beyond_it():
  stem = ConvStem(8, 3, 32, rngs=nnx.Rngs(0))
  images = jax.random.normal(jax.random.key(1), (2, 35, 24, 3))  # three rows fill no patch
  tokens = stem(images)
  assert tokens.shape == (2, 4 * 3, 32)
  np.testing.assert_array_equal(tokens, stem(images[:, :32]))
  changed = np.any(stem(images.at[:, 7, 7].add(1)) != tokens, axis=(0, 2)).reshape(4, 3)
  # The pixel is the last of the first patch, and within reach of its right and lower neighbours.
  assert changed[:2, :2].all() and not changed[2:].any() and not changed[:, 2:].any()


def test_conv_stem_halves_its_way_to_the_patch_size():
  with pytest.raises(ValueError, match="power of two, not 12"):
    ConvStem(12, 3, 32, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norms_count_in_float32(kind):
  x = (300 + jax.random.normal(jax.random.key(0), (4, 64))).astype(jnp.bfloat16)
  exact = np.float64(x)
  if kind == "layernorm":
    exact = exact - exact.mean(1, keepdims=True)
  exact = exact / np.sqrt((exact**2).mean(1, keepdims=True) + 1e-5)
  norm = make_norm(kind, 64, 1e-5, rngs=nnx.Rngs(0))
  np.testing.assert_allclose(np.float64(norm(x)), exact, rtol=2**-7, atol=1e-6)


def test_parts_without_parameters_leave_none():
  block = make_block(layerscale=0.0, qkv_bias=False, proj_bias=False, ffn_bias=False)
  names = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(block, nnx.Param))}
  assert not any("ls" in name for name in names)
  assert {name for name in names if name.endswith("bias")} == {"norm1/bias", "norm2/bias"}


def test_unknown_kinds():
  with pytest.raises(ValueError, match=r"model\.ffn must be mlp or swiglu, not 'moe'"):
    make_ffn("moe", 8, 4.0, 8, True, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"model\.norm must be layernorm or rmsnorm, not 'batch'"):
    make_norm("batch", 8, 1e-6, rngs=nnx.Rngs(0))
