import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.text.stack import make_blocks, run_blocks

SETTINGS = dict(width=8, num_heads=2, ffn="mlp", ffn_ratio=2.0, ffn_align=1, qkv_bias=False,
                proj_bias=True, ffn_bias=True, mask_k_bias=False, norm="layernorm", norm_eps=1e-5,
                layerscale=1.0)


@pytest.fixture(scope="module")
def blocks():
  return make_blocks(3, **SETTINGS, rngs=nnx.Rngs(0))


def test_blocks_follow_one_another(blocks):
  x = jax.random.normal(jax.random.key(1), (2, 5, 8))
  graph, params = nnx.split(blocks)
  expected = x
  for i in range(3):
    expected = nnx.merge(graph, jax.tree.map(lambda p, i=i: p[i], params))(expected)
  np.testing.assert_allclose(run_blocks(blocks, x), expected, atol=1e-5)
  first, second = blocks.attn.qkv.kernel[...][:2]
  assert not np.allclose(first, second)  # each is drawn for itself


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_again_changes_no_gradient(blocks, remat):
  x = jax.random.normal(jax.random.key(1), (2, 5, 8))
  grad = lambda remat: jax.grad(lambda x: jnp.sum(run_blocks(blocks, x, remat=remat) ** 2))(x)
  np.testing.assert_allclose(grad(remat), grad("none"), rtol=1e-4, atol=1e-4)


def test_an_unknown_remat_is_refused(blocks):
  with pytest.raises(ValueError, match=r"train\.remat must be one of none, dots, full, offload"):
    run_blocks(blocks, jnp.zeros((1, 2, 8)), remat="some")
