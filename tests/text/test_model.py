import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dinov3_jax
from dinov3_jax.text.loading import load_text


@pytest.fixture(scope="module")
def model(text_run):
  return load_text(text_run)


def images(count=4, size=16):
  return np.random.default_rng(0).standard_normal((count, size, size, 3)).astype(np.float32)


def test_features_are_of_unit_length(model):
  seen, told = model.encode_image(images()), model.encode_text(["red", "a blue square", ""])
  assert seen["global"].shape == (4, 32) and seen["patches"].shape == (4, 4, 16)
  assert told["global"].shape == (3, 32) and told["patches"].shape == (3, 16)
  for x in (*seen.values(), *told.values()):
    np.testing.assert_allclose(jnp.linalg.norm(x, axis=-1), 1, rtol=1e-5)


def test_a_texts_patch_half_is_what_it_says_of_the_mean_patch(model):
  told = model.encode_text("red")
  half = told["global"][:, 16:]
  np.testing.assert_allclose(told["patches"], half / np.linalg.norm(half), rtol=1e-5)
  assert 1 <= model.logit_scale <= 100


def test_captions_do_not_depend_on_their_company(model):
  many = [f"number {i}" for i in range(70)]
  alone = model.encode_text(many[66])["global"]
  np.testing.assert_allclose(model.encode_text(many)["global"][66:67], alone, atol=1e-5)


def test_preprocess_is_the_backbones(model):
  assert model.preprocess.mean == (0.5, 0.4, 0.3) and model.preprocess.size == 16
  x = model.preprocess(np.zeros((20, 30, 3), np.uint8))
  assert model.encode_image(x[None])["global"].shape == (1, 32)


def test_on_a_mesh_features_are_the_same(model, text_run):
  mesh = jax.make_mesh((2, 2, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:4],
                       axis_types=(jax.sharding.AxisType.Auto,) * 3)
  spread = load_text(text_run, mesh=mesh)
  for name in ("global", "patches"):
    np.testing.assert_allclose(spread.encode_image(images())[name],
                               model.encode_image(images())[name], atol=1e-5)
    np.testing.assert_allclose(spread.encode_text(["red", "blue"])[name],
                               model.encode_text(["red", "blue"])[name], atol=1e-5)


def test_any_number_of_images_goes_over_a_mesh(model, text_run):
  """Three devices, and more or fewer images than they share evenly."""
  mesh = jax.make_mesh((3, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:3],
                       axis_types=(jax.sharding.AxisType.Auto,) * 3)
  spread = load_text(text_run, mesh=mesh)
  for count in (1, 4):
    seen, expected = (m.encode_image(images(count)) for m in (spread, model))
    for name in ("global", "patches"):
      np.testing.assert_allclose(seen[name], expected[name], atol=1e-5)


@pytest.mark.parametrize("bad, message", [
  (np.zeros((1, 16, 16, 3), np.uint8), "images must be float"),
  (np.zeros((1, 12, 16, 3), np.float32), "images of 12x16 are not a whole number of patches of 8")])
def test_images_that_do_not_fit(model, bad, message):
  with pytest.raises(ValueError, match=message):
    model.encode_image(bad)


def test_what_is_no_caption(model):
  with pytest.raises(ValueError, match="a caption must be text, not int"):
    model.encode_text([3])
  with pytest.raises(ValueError, match="there are no captions"):
    model.encode_text([])


def test_it_is_at_the_top_of_the_package():
  assert dinov3_jax.load_text is load_text
