import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.models.head import DINOHead
from dinov3_jax.weights.naming import unflatten


def make_head(width=64, prototypes=97, hidden=48, bottleneck=16, layers=3):
  return DINOHead(width, prototypes=prototypes, hidden=hidden, bottleneck=bottleneck, layers=layers,
                  rngs=nnx.Rngs(0))


def test_reference(golden):
  g = golden("dino_head")
  graph, shapes = nnx.split(nnx.eval_shape(make_head))
  arrays = {k.removeprefix("sd/"): v for k, v in g.items() if k.startswith("sd/")}
  params = unflatten(arrays, nnx.to_pure_dict(shapes))
  run = jax.jit(lambda params, x: (nnx.merge(graph, params).bottleneck(x),
                                   nnx.merge(graph, params)(x)))
  bottleneck, logits = run(params, g["x"])
  np.testing.assert_allclose(bottleneck, g["bottleneck"], rtol=0, atol=1e-5)
  np.testing.assert_allclose(logits, g["out"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("sizes, millions", [
    (dict(width=1024, hidden=2048, bottleneck=256, prototypes=65536), 23.6),
    (dict(width=4096, hidden=8192, bottleneck=512, prototypes=262144), 239.1),
    (dict(width=4096, hidden=4096, bottleneck=384, prototypes=98304), 72.9),
])
def test_parameter_counts(sizes, millions):
  shapes = nnx.state(nnx.eval_shape(lambda: make_head(**sizes)), nnx.Param)
  assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6, 1) == millions


def test_one_layer_is_one_matrix():
  assert [x.shape for x in jax.tree.leaves(nnx.state(make_head(layers=1).mlp))] == [(16,), (64, 16)]


def test_initial_statistics():
  head = nnx.jit(lambda: make_head(256, 2048, 256, 128))()
  for layer in [*head.mlp.values(), head.last_layer]:
    np.testing.assert_allclose(np.std(layer.kernel[...]), 0.02, rtol=0.02)
    if layer.bias is not None:
      np.testing.assert_array_equal(layer.bias[...], 0)
  assert head.last_layer.bias is None


def test_the_bottleneck_has_unit_length_and_keeps_the_dtype():
  head = make_head()
  x = jax.random.normal(jax.random.key(0), (3, 2, 64))
  for dtype, tolerance in [(jnp.float32, 1e-6), (jnp.bfloat16, 0.01)]:
    graph, params = nnx.split(head)
    cast = nnx.merge(graph, jax.tree.map(lambda p, d=dtype: p.astype(d), params))
    y = cast.bottleneck(x.astype(dtype))
    assert y.dtype == dtype and y.shape == (3, 2, 16)
    np.testing.assert_allclose(np.linalg.norm(np.float32(y), axis=-1), 1, atol=tolerance)


def test_zeros_have_a_finite_gradient():
  head = nnx.merge(*nnx.split(make_head()))
  gradient = jax.jit(jax.grad(lambda x: head(x).sum()))(jnp.zeros((2, 64)))
  assert np.isfinite(gradient).all()


def test_no_layers():
  with pytest.raises(ValueError, match="at least one layer, not 0"):
    make_head(layers=0)
