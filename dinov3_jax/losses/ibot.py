"""The iBOT loss: masked patches are recognised (iBOT; DINOv2, section 4)."""

import jax
import jax.numpy as jnp
from jax import Array


def ibot_loss(student_logits: Array, teacher_probs: Array, weights: Array, crops: int,
              temperature: float = 0.1) -> Array:
  """Cross-entropy between teacher and student on the masked patches.

    L = -1 / crops sum_m weights_m sum_k teacher_mk log_softmax(student_m / temperature)_k

  With weights of 1 / (masked patches of the crop), every masked crop counts alike; the division is
  by all crops, masked or not, as in the reference.

  Args:
    student_logits: [M, K], of the masked patches alone, any float dtype.
    teacher_probs: [M, K], targets of the same patches, seen unmasked (`sinkhorn`).
    weights: [M].
    crops: the number of global crops, 2 B.
    temperature: of the student.

  Returns:
    Scalar, float32.
  """
  log_probs = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
  cross_entropy = -jnp.sum(teacher_probs.astype(jnp.float32) * log_probs, axis=-1)
  return jnp.sum(weights * cross_entropy) / crops
