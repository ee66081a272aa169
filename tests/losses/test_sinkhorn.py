import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax import losses

sinkhorn, sinkhorn_log_scales = (
  jax.jit(function, static_argnames="iterations")
  for function in (losses.sinkhorn, losses.sinkhorn_log_scales))

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "losses.npz")


def balanced(logits, temperature, iterations=3):
  """Float64 and in the log domain, straight from the definition."""
  z = logits.astype(np.float64) / temperature
  for _ in range(iterations):
    z = z - np.logaddexp.reduce(z, axis=0)
    z = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
  return np.exp(z)


@pytest.mark.parametrize("temperature, key", [(0.07, "sk_007"), (0.04, "sk_004")])
def test_reference(temperature, key):
  logits = GOLDEN["sk_in"]
  np.testing.assert_allclose(sinkhorn(logits, temperature), GOLDEN[key], atol=1e-6)
  u, v = sinkhorn_log_scales(logits, temperature)
  assignment = jnp.exp(logits / temperature + u + v[:, None])
  np.testing.assert_allclose(assignment, GOLDEN[key], atol=1e-5)


@pytest.mark.parametrize("shift", ["none", "samples", "prototypes"])
@pytest.mark.parametrize("iterations", [3, 20])
def test_large_logits(shift, iterations):
  rng = np.random.default_rng(0)
  logits = 3 * rng.normal(size=(24, 300)).astype(np.float32)
  # Whole rows or columns that exp() would lose in float32.
  if shift == "samples":
    logits -= 8 * np.arange(24, dtype=np.float32)[:, None]
  elif shift == "prototypes":
    logits -= np.arange(300, dtype=np.float32)
  assignment = np.asarray(sinkhorn(logits, 0.04, iterations=iterations))
  # A logit of 300 / 0.04 is known to 5e-4 in float32.
  np.testing.assert_allclose(assignment, balanced(logits, 0.04, iterations), atol=1e-3)
  np.testing.assert_allclose(assignment.sum(1), 1, rtol=1e-5)
  assert (assignment.sum(0) > 0).all()
  assert all(np.isfinite(x).all() for x in sinkhorn_log_scales(logits, 0.04, iterations=iterations))


def test_shift_of_all_logits_is_nothing_and_of_a_row_is_something():
  logits = GOLDEN["sk_in"]
  plain = sinkhorn(logits, 0.1)
  np.testing.assert_allclose(sinkhorn(logits + 2, 0.1), plain, atol=1e-5)
  rows = np.linspace(0, 1, len(logits), dtype=np.float32)[:, None]
  assert np.abs(sinkhorn(logits + rows, 0.1) - plain).max() > 0.01


def test_columns_balance_in_the_limit():
  logits = GOLDEN["sk_in"]
  columns = sinkhorn(logits, 1.0, iterations=10).sum(0)
  np.testing.assert_allclose(columns, len(logits) / logits.shape[1], rtol=1e-4)


def test_targets_carry_no_gradient():
  gradient = jax.grad(lambda x: jnp.sum(sinkhorn(x, 0.1)**2))(jnp.asarray(GOLDEN["sk_in"]))
  np.testing.assert_array_equal(gradient, 0)


def test_half_precision_logits_are_balanced_in_float32():
  logits = jnp.asarray(GOLDEN["sk_in"], jnp.bfloat16)
  assignment = sinkhorn(logits, 0.07)
  assert assignment.dtype == jnp.float32
  np.testing.assert_array_equal(assignment, sinkhorn(logits.astype(jnp.float32), 0.07))


def test_errors():
  with pytest.raises(ValueError, match="samples, prototypes"):
    sinkhorn(jnp.zeros((2, 3, 4)), 0.1)
  with pytest.raises(ValueError, match="at least one iteration"):
    sinkhorn(jnp.zeros((2, 3)), 0.1, iterations=0)
