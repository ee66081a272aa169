import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.models.rope import Rope, rotate

KEYS = jax.random.split(jax.random.key(0), 400)


@pytest.mark.parametrize("grid, head_dim", [((3, 5), 64), ((4, 4), 128)])
def test_tables(golden, grid, head_dim):
  g, rope = golden("rope"), Rope(head_dim)
  np.testing.assert_allclose(rope.periods, g[f"periods{head_dim}"], rtol=1e-6)
  for name, table in zip(("sin", "cos"), rope.tables(*grid)):
    np.testing.assert_allclose(table, g[f"{name}_{grid[0]}x{grid[1]}_hd{head_dim}"], atol=1e-5)


def test_tables_rounded_as_in_the_references_training(golden):
  g, rope = golden("rope"), Rope(64, dtype="bfloat16")
  np.testing.assert_array_equal(rope.periods, g["periods64_bf16"])
  for name, table in zip(("sin", "cos"), jax.jit(lambda: rope.tables(3, 5))()):
    assert table.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(table), g[f"{name}_3x5_hd64_bf16"], atol=1e-5)


def coords(rope, height, width, key=None):
  """The positions [patches, 2] that tables stand for, from each axis' slowest frequency."""
  sin, cos = rope.tables(height, width, key)
  n = rope.head_dim // 4
  angles = jnp.arctan2(sin[:, [n - 1, 2 * n - 1]], cos[:, [n - 1, 2 * n - 1]])
  return angles * rope.periods[-1] / (2 * math.pi)


def augmented(grid=(3, 4), **settings):
  """Positions without augmentation [patches, 2] and with, under many keys [keys, patches, 2]."""
  rope = Rope(64, **settings)
  draw = jax.jit(jax.vmap(lambda key: coords(rope, *grid, key)))
  return np.asarray(coords(rope, *grid)), np.asarray(draw(KEYS))


def assert_uniform(x, low, high):
  """Inside the bounds, close to both, and even (mean and spread within four standard errors)."""
  n, span = x.size, high - low
  assert x.min() >= low - 1e-4 and x.max() <= high + 1e-4
  assert x.min() < low + 0.05 * span and x.max() > high - 0.05 * span
  assert abs(x.mean() - (low + high) / 2) < 4 * span / math.sqrt(12 * n)
  np.testing.assert_allclose(x.std(), span / math.sqrt(12), rtol=4 / math.sqrt(n))


def test_shift_moves_each_axis():
  plain, moved = augmented(shift=0.4)
  shift = moved - plain
  chex.assert_trees_all_close(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-4)
  for axis in range(2):
    assert_uniform(shift[:, 0, axis], -0.4, 0.4)
  assert abs(np.corrcoef(shift[:, 0].T)[0, 1]) < 0.2


def test_jitter_stretches_each_axis():
  plain, moved = augmented(grid=(4, 4), jitter=1.5)
  factor = moved / plain
  chex.assert_trees_all_close(factor, np.broadcast_to(factor[:, :1], factor.shape), rtol=1e-3)
  for axis in range(2):
    assert_uniform(np.log(factor[:, 0, axis]), -math.log(1.5), math.log(1.5))
  assert abs(np.corrcoef(np.log(factor[:, 0]).T)[0, 1]) < 0.2


def test_rescale_stretches_both_axes_alike():
  plain, moved = augmented(grid=(4, 4), rescale=2.0)
  factor = moved / plain
  chex.assert_trees_all_close(factor, np.broadcast_to(factor[:, :1, :1], factor.shape), rtol=1e-3)
  assert_uniform(np.log(factor[:, 0, 0]), -math.log(2), math.log(2))


def test_shift_comes_before_the_factors():
  """c -> (c + shift) jitter rescale, so the shift may be scaled beyond its own bound."""
  plain, moved = augmented(shift=0.4, jitter=1.5, rescale=2.0)
  slope = (moved[:, -1] - moved[:, 0]) / (plain[-1] - plain[0])
  shift = moved[:, 0] / slope - plain[0]
  assert np.abs(shift).max() < 0.401
  assert np.abs(moved[:, 0] - plain[0] * slope).max() > 0.5
  ratio = slope[:, 0] / slope[:, 1]
  assert 1.5 < ratio.max() <= 2.2501 and 1 / 2.2501 <= ratio.min() < 1 / 1.5


def test_without_settings_a_key_changes_nothing():
  rope = Rope(32)
  chex.assert_trees_all_equal(rope.tables(2, 3, jax.random.key(0)), rope.tables(2, 3))


def test_augmented_bfloat16_tables_are_bfloat16():
  rope = Rope(32, dtype="bfloat16", shift=0.1, jitter=1.1, rescale=2.0)
  sin, cos = jax.jit(lambda key: rope.tables(2, 3, key))(KEYS[0])
  assert sin.dtype == cos.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(sin)**2 + np.float32(cos)**2, 1, atol=0.02)


@pytest.mark.parametrize("normalize, divisor", [
    ("separate", (2, 4)), ("max", (4, 4)), ("min", (2, 2))])
def test_sides(normalize, divisor):
  """The centre of the last row and column, (side - 0.5) / divisor mapped from [0, 1] to [-1, 1]."""
  corner = coords(Rope(64, normalize=normalize), 2, 4)[-1]
  np.testing.assert_allclose(corner, [2 * 1.5 / divisor[0] - 1, 2 * 3.5 / divisor[1] - 1],
                             atol=1e-4)


def test_first_angle_of_a_14x14_grid():
  sin, cos = Rope(64).tables(14, 14)
  expected = 2 * math.pi * (2 * 0.5 / 14 - 1)
  np.testing.assert_allclose([sin[0, 0], cos[0, 0]], [math.sin(expected), math.cos(expected)],
                             atol=1e-5)


def test_periods_between_two_ends():
  periods = Rope(64, base=0, min_period=0.5, max_period=8.0).periods
  np.testing.assert_allclose(periods, np.geomspace(0.5, 8, 16), rtol=1e-6)


def test_rotation_of_the_patches_alone():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 3 + 6, 2, 16)).astype(np.float32)
  sin, cos = map(np.asarray, Rope(16).tables(2, 3))
  turned = np.asarray(jax.jit(rotate)(x, sin, cos))
  np.testing.assert_array_equal(turned[:, :3], x[:, :3])
  # Element i and element i + half are one complex number.
  complex_ = lambda a: a[..., :8] + 1j * a[..., 8:]
  angle = (cos + 1j * sin)[:, None, :8]
  np.testing.assert_allclose(complex_(turned[:, 3:]), complex_(x[:, 3:]) * angle, atol=1e-5)


def test_rotation_keeps_the_dtype_and_runs_in_the_tables():
  x = jax.random.normal(jax.random.key(0), (1, 7, 1, 16), jnp.bfloat16)
  turned = rotate(x, *Rope(16).tables(2, 3))
  assert turned.dtype == jnp.bfloat16
  exact = rotate(x.astype(jnp.float32), *Rope(16).tables(2, 3))
  chex.assert_trees_all_equal(turned, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("settings, message", [
    (dict(head_dim=18), "4 divides, not 18"),
    (dict(head_dim=16, base=0), "either a base"),
    (dict(head_dim=16, min_period=1.0, max_period=2.0), "either a base"),
    (dict(head_dim=16, normalize="both"), "separate, max or min"),
    (dict(head_dim=16, dtype="bf16"), "float32 or bfloat16"),
])
def test_errors(settings, message):
  with pytest.raises(ValueError, match=message):
    Rope(**settings)
