"""The DINO loss: crops of one image agree on its prototypes (DINO; DINOv3, section 3.2)."""

import jax
import jax.numpy as jnp
from jax import Array


def dino_loss(student_logits: Array, teacher_probs: Array, temperature: float = 0.1,
              ignore_diagonal: bool = False) -> Array:
  """Cross-entropy between teacher and student, averaged over images and pairs of crops.

    L = -1 / (B P) sum_b sum_(s, t) sum_k teacher_btk log_softmax(student_bs / temperature)_k

  over P pairs of a student's and a teacher's crop: all S T of them or, with `ignore_diagonal`,
  those with s != t, which keeps a crop from being its own target.

  Args:
    student_logits: [B, S, K], any float dtype.
    teacher_probs: [B, T, K], targets (`sinkhorn`).
    temperature: of the student.
    ignore_diagonal: leave out the pairs of a crop with itself.

  Returns:
    Scalar, float32.
  """
  batch, students, _ = student_logits.shape
  teachers = teacher_probs.shape[1]
  count = students * teachers - ignore_diagonal * min(students, teachers)
  if count == 0:
    raise ValueError("One student and one teacher crop leave no pair off the diagonal; "
                     "use ignore_diagonal=False.")
  targets = teacher_probs.astype(jnp.float32)
  # The targets of a student's crop are summed first: one product over K for each crop, not pair.
  if ignore_diagonal:
    pairs = 1 - jnp.eye(students, teachers)
    targets = jnp.einsum("st,btk->bsk", pairs, targets, precision="highest")
  else:
    targets = targets.sum(axis=1, keepdims=True)
  log_probs = jax.nn.log_softmax(student_logits.astype(jnp.float32) / temperature)
  return -jnp.sum(targets * log_probs) / (batch * count)
