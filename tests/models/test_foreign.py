import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.models import foreign, variants
from tests import strangers

SETTINGS = dict(callable="tests.strangers:pixels", width=12, patch_size=8)
HOST = SETTINGS | dict(callable="tests.strangers:on_host", host=True)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16, 24, 3)), jnp.float32)


@pytest.mark.parametrize("settings", [SETTINGS, HOST], ids=["traced", "host"])
def test_tokens_are_those_of_the_function(settings):
  model = variants.build(settings, rngs=nnx.Rngs(0))
  assert isinstance(model, foreign.Foreign) and not jax.tree.leaves(nnx.state(model))
  assert (variants.stride(settings), variants.width(settings)) == (8, 12)
  cls, patches = strangers.pixels(IMAGES)
  tokens = nnx.jit(lambda model, x: model(x))(model, IMAGES)
  np.testing.assert_allclose(tokens["cls"], cls, atol=1e-6)
  np.testing.assert_allclose(tokens["patches"], patches, atol=1e-6)
  assert tokens["storage"].shape == (3, 0, 12)


@pytest.mark.parametrize("settings", [SETTINGS, HOST], ids=["traced", "host"])
def test_crops_of_both_sizes_with_no_gradient_to_the_images(settings):
  model = foreign.Foreign(**settings)

  @jax.jit
  def loss(images):
    big, small = model.forward_crops(images, images[:, :8, :8], masks=jnp.ones((3, 6), bool))
    return big["cls"].sum() + small["patches"].sum()

  value, gradient = jax.value_and_grad(loss)(IMAGES)
  cls, _ = strangers.pixels(IMAGES)
  _, patches = strangers.pixels(IMAGES[:, :8, :8])
  np.testing.assert_allclose(value, cls.sum() + patches.sum(), rtol=1e-4)
  assert not np.any(gradient)
  assert model.forward_crops(IMAGES)[1] is None


def test_the_function_sees_float32_whatever_the_computation():
  model = foreign.Foreign(**HOST)  # which says so if it does not
  tokens = jax.jit(model)(IMAGES.astype(jnp.bfloat16))
  assert tokens["cls"].dtype == tokens["patches"].dtype == jnp.bfloat16


def test_each_device_calls_for_its_own_images():
  mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4],
                       axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec("data")
  images = jnp.tile(IMAGES, (4, 1, 1, 1))
  f = jax.shard_map(foreign.Foreign(**HOST), mesh=mesh, in_specs=spec, out_specs=spec,
                    check_vma=False)
  np.testing.assert_allclose(jax.jit(f)(images)["cls"], strangers.pixels(images)[0], atol=1e-6)


def test_large_batches_do_not_block_the_host():
  """A callback waits for arrays that the CPU's own threads make."""
  images = jnp.zeros((64, 224, 224, 3))
  assert jax.jit(foreign.Foreign(**HOST))(images + 1)["patches"].shape == (64, 784, 12)


@pytest.mark.parametrize("changes, message", [
  (dict(width=13), r"makes CLS \[1, 12\] where \[1, 13\] are expected: set model.width"),
  (dict(patch_size=16), r"makes patches \[1, 16, 12\] where \[1, 4, 12\] are expected"),
  (dict(callable="tests.strangers:patches_alone"), "must return two arrays, CLS and patches"),
  (dict(callable="tests.strangers:on_host"), r"no function of JAX, set model.host=True"),
  (dict(callable="tests.strangers:breaks"), r"images of 16x16 px \(RuntimeError: out of order\)"),
  (dict(callable="tests.strangers:breaks", host=True), r"\(RuntimeError: out of order\)$"),
  (dict(digest="0123456789abcdef"), "their digest is unknown, not 0123456789abcdef"),
])
def test_what_does_not_fit_its_settings_is_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    foreign.checked(SETTINGS | changes)
  assert "\n" not in str(error.value)


def test_images_of_broken_patches_are_refused():
  with pytest.raises(ValueError, match="not a whole number of"):
    foreign.Foreign(**SETTINGS)(IMAGES[:, :12])


def test_the_digest_is_what_the_function_says(monkeypatch):
  assert foreign.checked(SETTINGS) == foreign.checked(HOST) == ""
  monkeypatch.setattr(strangers.pixels, "digest", "abc", raising=False)
  assert foreign.checked(SETTINGS) == foreign.checked(SETTINGS | dict(digest="abc")) == "abc"
