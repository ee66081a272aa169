import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.text.tower import TextHead, TextTower, last_token
from dinov3_jax.weights import naming

SIZES = dict(vocabulary=50, context=7, width=32, depth=2, num_heads=2)


@pytest.fixture(scope="module")
def tower():
  return TextTower(**SIZES, rngs=nnx.Rngs(0))


def test_tokens_are_the_recorded_ones(golden):
  record = golden("text_transformer")
  arrays = {name.removeprefix("sd/"): x for name, x in record.items() if name.startswith("sd/")}
  context, width = arrays["positional_embedding"].shape
  sizes = dict(SIZES, vocabulary=len(arrays["token_embedding.weight"]), context=context,
               width=width, num_heads=2)
  shapes = nnx.eval_shape(lambda: TextTower(**sizes, rngs=nnx.Rngs(0)))
  graph, shapes = nnx.split(shapes)
  tower = nnx.merge(graph, naming.unflatten(arrays, nnx.to_pure_dict(shapes)))
  tokens = tower(record["tokens"].astype(np.int32))
  np.testing.assert_allclose(tokens, record["out"], atol=1e-5, rtol=1e-5)


def test_a_token_does_not_see_those_after_it(tower):
  ids = jnp.arange(1, 8)[None]
  np.testing.assert_allclose(tower(ids)[:, :4], tower(ids.at[:, 4:].set(9))[:, :4], atol=1e-6)
  np.testing.assert_allclose(tower(ids)[:, :4], tower(ids[:, :4]), atol=1e-6)
  assert not np.allclose(tower(ids)[:, 4:], tower(ids.at[:, 0].set(9))[:, 4:], atol=1e-3)


def test_the_feature_is_that_of_the_greatest_id():
  tokens = jnp.arange(2 * 4 * 3).reshape(2, 4, 3)
  ids = jnp.array([[3, 9, 0, 0], [3, 1, 2, 9]])
  np.testing.assert_array_equal(last_token(tokens, ids), [tokens[0, 1], tokens[1, 3]])


def test_initialisation_has_the_deviations_of_clip():
  tower = TextTower(vocabulary=300, context=40, width=128, depth=4, num_heads=2, rngs=nnx.Rngs(0))
  added = (2 * 4 * 128) ** -0.5
  expected = {"token_embedding": 0.02, "positional_embedding": 0.01,
              "blocks.attn.qkv.kernel": 128**-0.5, "blocks.attn.proj.kernel": added,
              "blocks.mlp.fc1.kernel": 256**-0.5, "blocks.mlp.fc2.kernel": added}
  for name, std in expected.items():
    x = tower
    for part in name.split("."):
      x = getattr(x, part)
    np.testing.assert_allclose(np.std(x[...]), std, rtol=0.05, err_msg=name)
  for bias in (tower.blocks.mlp.fc1.bias, tower.blocks.mlp.fc2.bias, tower.blocks.attn.proj.bias):
    assert not np.any(bias[...])
  head = TextHead(128, 64, rngs=nnx.Rngs(0))
  assert head.linear_projection.bias is None
  np.testing.assert_allclose(np.std(head.linear_projection.kernel[...]), 128**-0.5, rtol=0.05)
  assert head(jnp.ones((3, 128))).shape == (3, 64)


def test_captions_longer_than_the_context_are_refused(tower):
  with pytest.raises(ValueError, match="8 ids are longer than the text tower's 7"):
    tower(jnp.ones((1, 8), jnp.int32))


def test_heads_must_divide_the_width():
  with pytest.raises(ValueError, match=r"text\.width 32 is not a multiple"):
    jax.eval_shape(lambda: nnx.state(TextTower(**SIZES | dict(num_heads=3), rngs=nnx.Rngs(0))))
