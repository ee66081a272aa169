import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.models.adapters import Adapter, fold, is_adapter
from dinov3_jax.models.variants import build

SETTINGS = dict(width=32, depth=3, num_heads=2, patch_size=8, layerscale=1.0)
IMAGES = np.random.default_rng(0).standard_normal((2, 16, 24, 3)).astype(np.float32)


def params_of(model):
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def lively(params, scale=0.1):
  """The same network, whose adapters have learned something."""
  rng = np.random.default_rng(1)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.asarray(rng.normal(0, scale, x.shape), x.dtype)
    if any(is_adapter(key.key) for key in path) else x, params)


def with_params(model, params):
  return nnx.merge(nnx.split(model)[0], params)


@pytest.mark.parametrize("out", [(5,), (3, 5)])
def test_a_fresh_adapter_adds_nothing_and_then_a_product_of_its_rank(out):
  adapter = Adapter(7, out, 2, rngs=nnx.Rngs(0))
  x = np.random.default_rng(0).standard_normal((4, 6, 7)).astype(np.float32)
  assert adapter(x).shape == (4, 6, *out) and not np.any(adapter(x))
  adapter.b[...] = jax.random.normal(jax.random.key(0), adapter.b.shape)
  y = np.asarray(adapter(x)).reshape(24, -1)
  product = adapter.a[...] @ adapter.b[...].reshape(2, -1)
  np.testing.assert_allclose(y, x.reshape(24, 7) @ product, atol=1e-5)
  assert np.linalg.matrix_rank(y, tol=1e-4) == 2


def test_a_network_with_fresh_adapters_is_the_one_without_to_the_last_bit():
  model = build(SETTINGS | dict(adapter_rank=4), rngs=nnx.Rngs(0))
  plain = with_params(build(SETTINGS, rngs=nnx.Rngs(1)), fold(params_of(model)))
  for name, x in model(IMAGES).items():
    np.testing.assert_array_equal(x, plain(IMAGES)[name])


def test_folded_adapters_give_the_same_features():
  model = build(SETTINGS | dict(adapter_rank=4), rngs=nnx.Rngs(0))
  before = model(IMAGES)["cls"]
  model = with_params(model, lively(params_of(model)))
  plain = with_params(build(SETTINGS, rngs=nnx.Rngs(1)), fold(params_of(model)))
  for name, x in model(IMAGES).items():
    np.testing.assert_allclose(x, plain(IMAGES)[name], atol=2e-5)
  assert np.abs(model(IMAGES)["cls"] - before).max() > 0.1


def test_fold_leaves_other_parameters_and_its_argument_as_they_are():
  params = lively(params_of(build(SETTINGS | dict(adapter_rank=4), rngs=nnx.Rngs(0))))
  kernel = np.array(params["blocks"]["attn"]["qkv"]["kernel"])
  folded = fold(params)
  np.testing.assert_array_equal(params["blocks"]["attn"]["qkv"]["kernel"], kernel)
  assert jax.tree.structure(folded) == jax.tree.structure(
    params_of(build(SETTINGS, rngs=nnx.Rngs(0))))
  for name in ("mlp", "norm1"):
    assert folded["blocks"][name] == params["blocks"][name]
  plain = params_of(build(SETTINGS, rngs=nnx.Rngs(0)))
  assert fold(plain) == plain


def test_a_kernel_keeps_its_dtype_and_the_sum_is_made_in_float32():
  half = lambda x: x.astype(jnp.bfloat16)
  params = lively(params_of(build(SETTINGS | dict(adapter_rank=4), rngs=nnx.Rngs(0))))
  part = {"proj": half(params["blocks"]["attn"]["proj"]["kernel"]),
          **{key: half(x) for key, x in params["blocks"]["attn"]["proj_adapter"].items()}}
  folded = fold({"proj": {"kernel": part["proj"]},
                 "proj_adapter": {"a": part["a"], "b": part["b"]}})["proj"]["kernel"]
  a, b, kernel = (np.asarray(part[key], np.float32) for key in ("a", "b", "proj"))
  assert folded.dtype == jnp.bfloat16
  np.testing.assert_array_equal(folded, half(jnp.asarray(kernel + a @ b)))
