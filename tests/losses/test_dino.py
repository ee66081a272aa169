import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax import losses

dino_loss = jax.jit(losses.dino_loss, static_argnames=("temperature", "ignore_diagonal"))

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "losses.npz")
TEACHER = GOLDEN["sk_007"].reshape(2, 4, 37).swapaxes(0, 1)
GLOBALS, LOCALS = (GOLDEN[key].swapaxes(0, 1) for key in ("s_global", "s_local"))


@pytest.mark.parametrize("student, ignore_diagonal, key", [
  (LOCALS, False, "dino_local"),
  (GLOBALS, False, "dino_global_all"),
  (GLOBALS, True, "dino_global_diag"),
])
def test_reference(student, ignore_diagonal, key):
  loss = dino_loss(student, TEACHER, ignore_diagonal=ignore_diagonal)
  np.testing.assert_allclose(loss, GOLDEN[key], rtol=1e-5)


def test_diagonal_crop_is_no_target_of_its_own():
  gradient = jax.grad(dino_loss, argnums=1)(GLOBALS[:, :1], TEACHER, ignore_diagonal=True)
  np.testing.assert_array_equal(gradient[:, 0], 0)
  assert np.abs(gradient[:, 1]).max() > 0


def test_uniform_logits_give_the_logarithm_of_prototypes():
  loss = dino_loss(jnp.zeros((4, 8, 37), jnp.bfloat16), TEACHER)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, np.log(37), rtol=1e-6)


def test_no_pair_left():
  with pytest.raises(ValueError, match="no pair off the diagonal"):
    dino_loss(GLOBALS[:, :1], TEACHER[:, :1], ignore_diagonal=True)
