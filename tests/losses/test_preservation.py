import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.losses.preservation import preservation_loss

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((2, 5, 7)).astype(np.float32)


def test_it_is_one_minus_the_cosine():
  cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(X, Y)]
  np.testing.assert_allclose(preservation_loss(X, Y), 1 - np.mean(cosines), rtol=1e-6)


def test_lengths_do_not_count_and_directions_do():
  np.testing.assert_allclose(preservation_loss(3 * X, X), 0, atol=1e-6)
  np.testing.assert_allclose(preservation_loss(-X, X), 2, rtol=1e-6)
  assert preservation_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3))) == 1  # and is finite


def test_the_gradient_flows_to_the_student_alone_and_leads_back():
  student, frozen = jax.grad(preservation_loss, argnums=(0, 1))(X, Y)
  assert not np.any(frozen)
  assert preservation_loss(X - 0.1 * student, Y) < preservation_loss(X, Y)
  chex.assert_tree_all_finite(jax.grad(preservation_loss)(jnp.zeros((2, 3)), jnp.ones((2, 3))))


def test_it_is_float32_whatever_comes_in():
  assert preservation_loss(X.astype(jnp.bfloat16), Y.astype(jnp.bfloat16)).dtype == jnp.float32


def test_other_shapes_are_refused():
  with pytest.raises(ValueError, match=r"differ in shape: \(5, 7\) and \(5, 6\)"):
    preservation_loss(X, Y[:, :6])
