import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.text.vision_head import VisionHead


def tokens(images=2, storage=1, patches=6, width=16):
  keys = jax.random.split(jax.random.key(0), 3)
  normal = lambda key, *shape: jax.random.normal(key, (images, *shape, width))
  return dict(cls=normal(keys[0]), storage=normal(keys[1], storage),
              patches=normal(keys[2], patches))


def make(embedding=32, **options):
  return VisionHead(width=16, embedding=embedding, num_heads=2, layerscale=1.0, **options,
                    rngs=nnx.Rngs(0))


def test_an_image_is_cls_and_the_mean_patch():
  seen = make()(tokens())
  np.testing.assert_allclose(
    seen["image"], jnp.concatenate([seen["cls"], seen["patches"].mean(1)], -1), atol=1e-6)
  assert seen["image"].shape == (2, 32) and seen["patches"].shape == (2, 6, 16)


def test_a_linear_layer_only_where_the_space_has_another_size():
  assert make().linear_projection is None
  head = make(embedding=20)
  assert head.linear_projection.bias is None
  seen = head(tokens())
  assert seen["image"].shape == (2, 20) and seen["patches"].shape == (2, 6, 10)


def test_patches_in_another_order_are_the_same_patches():
  """There is no position but what the backbone's tokens carry."""
  head, given = make(), tokens()
  turned = given | dict(patches=given["patches"][:, ::-1])
  np.testing.assert_allclose(head(turned)["patches"], head(given)["patches"][:, ::-1], atol=1e-5)
  np.testing.assert_allclose(head(turned)["image"], head(given)["image"], atol=1e-5)


def test_storage_tokens_are_seen():
  head, given = make(), tokens()
  other = given | dict(storage=-given["storage"])
  assert not np.allclose(head(given)["image"], head(other)["image"], atol=1e-3)
  assert head(given | dict(storage=given["storage"][:, :0]))["image"].shape == (2, 32)


def test_stochastic_depth_needs_a_key():
  head, given = make(drop_path=0.5), tokens(images=4)
  np.testing.assert_array_equal(head(given)["image"], head(given)["image"])
  drawn = [head(given, key=jax.random.key(i))["image"] for i in range(2)]
  assert not np.allclose(*drawn, atol=1e-3)


def test_the_space_must_have_two_halves():
  with pytest.raises(ValueError, match="must be even"):
    make(embedding=31)
