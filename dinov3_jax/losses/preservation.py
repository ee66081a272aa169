"""Features that stay where they were, in a training that goes on from somebody's weights."""

import jax
import jax.numpy as jnp
from jax import Array


def preservation_loss(student: Array, frozen: Array) -> Array:
  """Mean distance in direction from the features that a training began with.

    L = mean_i (1 - s_i . f_i / (|s_i| |f_i|))

  Not in the reference. Beside the Gram loss, which holds the similarities of patches, it holds the
  feature that classification and retrieval use.

  Args:
    student: [B, D], any float dtype.
    frozen: [B, D], of the network as it was before. No gradient flows back.

  Returns:
    Scalar, float32, from 0 to 2.

  Raises:
    ValueError: the shapes differ.
  """
  if student.shape != frozen.shape:
    raise ValueError(f"the features of student and frozen network differ in shape: {student.shape} "
                     f"and {frozen.shape}")
  student = student.astype(jnp.float32)
  frozen = jax.lax.stop_gradient(frozen).astype(jnp.float32)
  norm = lambda x: jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1), 1e-24))
  return jnp.mean(1 - jnp.sum(student * frozen, axis=-1) / (norm(student) * norm(frozen)))
