import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from dinov3_jax.losses.contrastive import contrastive_loss


def features(pairs=8, width=6, dtype=np.float32):
  x = np.random.default_rng(0).standard_normal((2, pairs, width))
  return [jnp.asarray(y / np.linalg.norm(y, axis=1, keepdims=True), dtype) for y in x]


def textbook(images, texts, scale):
  logits = scale * images @ texts.T
  right = jnp.arange(len(images))
  cross_entropy = optax.softmax_cross_entropy_with_integer_labels
  return jnp.mean(cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2


@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
def test_value_and_gradients_are_those_of_two_cross_entropies(scale):
  """Those of float64. A gradient's entry is a sum of terms that are far larger than some of the
  sums, so that it is the largest entry which says how exact all of them can be."""
  args = (*features(), jnp.float32(scale))
  ours = jax.value_and_grad(contrastive_loss, (0, 1, 2))(*args)
  with jax.enable_x64(True):
    exact = [jnp.asarray(np.asarray(x), jnp.float64) for x in args]
    expected = jax.device_get(jax.value_and_grad(textbook, (0, 1, 2))(*exact))
  for x, y in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
    assert y.dtype == np.float64
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize("sizes", [(2, 1), (2, 4)])
def test_shards_together_have_the_loss_of_the_whole_batch(sizes):
  """The mean of the shards' losses, and of their gradients of what they share, is the whole's."""
  mesh = jax.make_mesh(sizes, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2,
                       devices=jax.devices()[:np.prod(sizes)])
  axes = tuple(axis for axis, size in mesh.shape.items() if size > 1)
  images, texts = features(pairs=16)
  weight = jnp.asarray(np.random.default_rng(1).standard_normal((6, 6)), jnp.float32)

  def loss(shared, images, texts, axes=()):
    weight, scale = shared
    return contrastive_loss(images @ weight, texts, scale, axes)

  def of_shard(shared, images, texts):
    value, grads = jax.value_and_grad(loss)(shared, images, texts, axes)
    return jax.lax.pmean((value, grads), ("data", "fsdp"))

  shared = weight, jnp.float32(10.0)
  part = P(("data", "fsdp"))
  ours = jax.jit(jax.shard_map(of_shard, mesh=mesh, in_specs=(P(), part, part), out_specs=P(),
                               check_vma=False))(shared, images, texts)
  expected = jax.value_and_grad(
    lambda shared: textbook(images @ shared[0], texts, shared[1]))(shared)
  chex.assert_trees_all_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_device_holds_no_more_logits_than_its_rows():
  """Of 64 pairs on 8 devices no array of a device is as large as 64 x 64."""
  mesh = jax.make_mesh((8, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  images, texts = features(pairs=64)
  of_shard = jax.grad(lambda x, y: contrastive_loss(x, y, jnp.float32(10.0), ("data",)), (0, 1))
  part = P("data")
  step = jax.jit(jax.shard_map(of_shard, mesh=mesh, in_specs=(part, part), out_specs=part,
                               check_vma=False))
  text = step.lower(images, texts).compile().as_text()
  assert "f32[8,64]" in text and "f32[64,64]" not in text
  # The features of images and of texts, once each, and the rows' log-sum-exps.
  assert text.count("all-gather(") + text.count("all-gather-start(") <= 4
  assert "reduce-scatter" not in text and "all-reduce" not in text


def test_the_pairs_are_the_right_answers():
  images, _ = features()
  scale = jnp.float32(100.0)
  assert contrastive_loss(images, images, scale) < 1e-3
  assert contrastive_loss(images, images[::-1], scale) > 1


def test_bfloat16_features_give_a_float32_loss():
  images, texts = features(dtype=jnp.bfloat16)
  loss, grads = jax.value_and_grad(contrastive_loss, (0, 1))(images, texts, jnp.float32(10.0))
  assert loss.dtype == jnp.float32 and grads[0].dtype == jnp.bfloat16
  np.testing.assert_allclose(loss, textbook(*features(), 10.0), rtol=2e-2)
