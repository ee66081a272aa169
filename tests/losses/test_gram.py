import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax import losses

gram_loss = jax.jit(losses.gram_loss, static_argnames=("normalized", "image_level", "negatives"))
bicubic_downsample = jax.jit(losses.bicubic_downsample, static_argnames="size")

GOLDENS = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN, BICUBIC = np.load(GOLDENS / "losses.npz"), np.load(GOLDENS / "bicubic.npz")
STUDENT, TEACHER = GOLDEN["gram_a"], GOLDEN["gram_b"]


@pytest.mark.parametrize("options, key", [
  ({}, "gram_img"),
  ({"image_level": False}, "gram_batch"),
  ({"negatives": "remove"}, "gram_rmneg"),
  ({"normalized": False}, "gram_nonorm"),
])
def test_reference(options, key):
  np.testing.assert_allclose(gram_loss(STUDENT, TEACHER, **options), GOLDEN[key], rtol=1e-5)


def gram(x):
  x = x.reshape(-1, x.shape[-1])
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  return x @ x.T


def test_negatives_of_the_teacher_are_removed_from_both():
  s, t = gram(STUDENT), gram(TEACHER)
  expected = np.mean(np.where(t < 0, 0, s - t)**2)
  options = dict(image_level=False, negatives="remove_teacher_only")
  np.testing.assert_allclose(gram_loss(STUDENT, TEACHER, **options), expected, rtol=1e-5)
  assert not np.isclose(expected, np.mean((s - np.maximum(t, 0))**2), rtol=0.1)


def test_selected_tokens():
  select = np.random.default_rng(0).random(STUDENT.shape[:2]) < 0.4
  s, t = gram(STUDENT[select]), gram(TEACHER[select])
  loss = functools.partial(gram_loss, image_level=False)
  np.testing.assert_allclose(loss(STUDENT, TEACHER, select=select), np.mean((s - t)**2), rtol=1e-5)
  assert loss(STUDENT, TEACHER, select=np.zeros_like(select)) == 0


@pytest.mark.parametrize("image_level", [True, False])
def test_gradient(image_level):
  def plain(x):
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    t = TEACHER / np.linalg.norm(TEACHER, axis=-1, keepdims=True)
    if not image_level:
      x, t = (y.reshape(1, -1, y.shape[-1]) for y in (x, t))
    return jnp.mean((x @ x.swapaxes(1, 2) - t @ t.swapaxes(1, 2))**2)

  expected = jax.jit(jax.grad(plain))(jnp.asarray(STUDENT))
  gradient = jax.grad(gram_loss)(jnp.asarray(STUDENT), TEACHER, image_level=image_level)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-8)


def test_same_features_and_widths_that_differ():
  assert gram_loss(STUDENT, STUDENT) == 0
  wider = np.concatenate([STUDENT, np.zeros_like(STUDENT)], axis=-1)
  np.testing.assert_allclose(gram_loss(STUDENT, wider), 0, atol=1e-12)


def test_errors():
  with pytest.raises(ValueError, match="remove_teacher_only, not 'drop'"):
    gram_loss(STUDENT, TEACHER, negatives="drop")
  with pytest.raises(ValueError, match="image_level=False"):
    gram_loss(STUDENT, TEACHER, select=np.ones(STUDENT.shape[:2], bool))
  with pytest.raises(ValueError, match="student's grid"):
    gram_loss(STUDENT, TEACHER[:, :4])


@pytest.mark.parametrize("source, target", [("x", "y"), ("x3", "y3")])
def test_bicubic_reference(source, target):
  x, y = (BICUBIC[key].transpose(0, 2, 3, 1) for key in (source, target))
  np.testing.assert_allclose(bicubic_downsample(x, y.shape[1:3]), y, atol=1e-5)


@pytest.mark.parametrize("shape, size", [((7, 12), (3, 5)), ((5, 4), (11, 4)), ((3, 2), (1, 1))])
def test_bicubic_of_any_size(shape, size):
  torch = pytest.importorskip("torch")
  x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(x).permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False)
  resized = bicubic_downsample(x, size)
  np.testing.assert_allclose(resized, expected.permute(0, 2, 3, 1), atol=1e-5)
  assert bicubic_downsample(jnp.asarray(x, jnp.bfloat16), size).dtype == jnp.bfloat16
