import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.losses import koleo_loss as unjitted

koleo_loss = jax.jit(unjitted, static_argnums=(1, 2))
GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "losses.npz")
FEATURES = GOLDEN["koleo_in"]


def test_reference():
  np.testing.assert_allclose(koleo_loss(FEATURES, 16), GOLDEN["koleo"], rtol=1e-5)


@pytest.mark.parametrize("topk", [1, 3])
def test_neighbours_stay_in_their_group(topk):
  x = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
  expected = []
  for start in range(0, 16, 4):
    rows = x[start:start + 4]
    for i in range(4):
      distances = sorted(np.linalg.norm(rows[i] - rows[j]) for j in range(4) if j != i)
      expected += [-np.log(d) for d in distances[:topk]]
  np.testing.assert_allclose(koleo_loss(FEATURES, 4, topk), np.mean(expected), rtol=1e-5)


def test_leading_axes_never_meet():
  crops = FEATURES.reshape(2, 8, 24)
  expected = np.mean([koleo_loss(crop, 8) for crop in crops])
  np.testing.assert_allclose(koleo_loss(crops, 8), expected, rtol=1e-6)


def test_gradient_flows_through_both_ends():
  # The first row is nobody's neighbour; the second is nearest to it and to the third.
  x = jnp.array([[1.0, 0.9], [1.0, 0.1], [1.0, -0.1]])

  def loss(x, fixed):
    return koleo_loss(jnp.where(fixed, jax.lax.stop_gradient(x), x), 3)

  others_fixed = jax.jit(jax.grad(loss))(x, np.array([[True], [False], [True]]))
  eps = 1e-3
  step = jnp.zeros_like(x).at[1, 1].set(eps)
  numeric = (koleo_loss(x + step, 3) - koleo_loss(x - step, 3)) / (2 * eps)
  np.testing.assert_allclose(others_fixed[1, 1], numeric, rtol=1e-2)


def test_finite_for_duplicates_and_zeros():
  value_and_grad = jax.jit(jax.value_and_grad(unjitted), static_argnums=1)
  for x in (jnp.ones((4, 8)), jnp.zeros((4, 8)), jnp.ones((4, 8), jnp.bfloat16)):
    loss, gradient = value_and_grad(x, 4)
    assert loss.dtype == jnp.float32
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_errors():
  with pytest.raises(ValueError, match="groups of 5 do not divide 16 rows"):
    koleo_loss(FEATURES, 5)
  for group, topk in ((1, 1), (4, 4), (4, 0)):
    with pytest.raises(ValueError, match="1 <= topk < group"):
      koleo_loss(FEATURES, group, topk)
