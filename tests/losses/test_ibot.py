import pathlib

import jax.numpy as jnp
import numpy as np

from dinov3_jax.losses import ibot_loss

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "losses.npz")


def test_reference():
  crops = len(GOLDEN["masks"])
  loss = ibot_loss(GOLDEN["ibot_s"], GOLDEN["ibot_t"], GOLDEN["masks_weight"], crops)
  np.testing.assert_allclose(loss, GOLDEN["ibot_loss"], rtol=1e-5)


def test_unmasked_crops_count_in_the_mean():
  prototypes, masked_crops, crops = 50, 3, 6
  logits = jnp.zeros((6, prototypes), jnp.bfloat16)
  teacher = jnp.full((6, prototypes), 1 / prototypes)
  weights = jnp.array([1, 1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3])
  loss = ibot_loss(logits, teacher, weights, crops)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, masked_crops / crops * np.log(prototypes), rtol=1e-6)
