"""Gram anchoring: patch similarities stay those of a better teacher (DINOv3, section 4)."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Negatives = Literal["keep", "remove", "remove_teacher_only"]


def gram_loss(student: Array, teacher: Array, normalized: bool = True, image_level: bool = True,
              negatives: Negatives = "keep", select: Array | None = None) -> Array:
  """Mean squared difference of two Gram matrices.

    L = mean_ij (s_i . s_j - t_i . t_j)^2

  over the pairs of tokens of one image, or of the whole batch (`jax.vmap` over shards makes that
  the batch of one device, as in the reference, and spares a gather of all tokens).

  Args:
    student: [B, N, D] patch features, any float dtype.
    teacher: [B, N, D'] of the Gram teacher, on the same grid. No gradient flows back.
    normalized: scale each feature to length one before.
    image_level: compare tokens of the same image only.
    negatives: "keep"; "remove": negative similarities count as zero, in student and teacher each
      on its own; "remove_teacher_only": pairs with a negative similarity in the teacher are zero in
      both. (In the reference the last has no effect on the student, by an oversight.)
    select: [B, N] bool, tokens to compare (masked, or unmasked, ones); all if None. At batch level
      only.

  Returns:
    Scalar, float32; 0 where nothing is selected.
  """
  if negatives not in ("keep", "remove", "remove_teacher_only"):
    raise ValueError(f"gram.negatives is keep, remove or remove_teacher_only, not {negatives!r}.")
  if image_level and select is not None:
    raise ValueError("A selection of tokens needs Gram matrices over the batch: set "
                     "gram.image_level=False, or gram.tokens='all'.")
  if student.shape[:2] != teacher.shape[:2]:
    raise ValueError(f"Gram student and teacher differ in images or patches: {student.shape[:2]} "
                     f"and {teacher.shape[:2]}; bring the teacher's patches to the student's grid.")
  student = student.astype(jnp.float32)
  teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32)
  if normalized:
    student, teacher = (
      x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
      for x in (student, teacher))
  images, tokens, _ = student.shape
  error = functools.partial(_squared_error, negatives=negatives)
  if image_level:
    return jnp.mean(jax.vmap(error)(student, teacher, student, teacher)) / tokens**2
  weights = jnp.ones((images, tokens)) if select is None else select.astype(jnp.float32)
  everything = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
  # One image's rows at a time: the [B N, B N] matrices never stand in memory.
  rows = jax.checkpoint(lambda args: error(*args[:2], *everything, args[2], weights.reshape(-1)))
  total = jnp.sum(jax.lax.map(rows, (student, teacher, weights)))
  return total / jnp.maximum(jnp.sum(weights)**2, 1)


def _squared_error(student: Array, teacher: Array, students: Array, teachers: Array,
                   row_weights: Array | float = 1.0, column_weights: Array | float = 1.0, *,
                   negatives: Negatives) -> Array:
  """sum_ij over rows `student`, `teacher` [n, D] and columns `students`, `teachers` [m, D]."""
  s = jnp.matmul(student, students.T, precision="highest")
  t = jnp.matmul(teacher, teachers.T, precision="highest")
  if negatives == "remove":
    s, t = jax.nn.relu(s), jax.nn.relu(t)
  difference = s - t
  if negatives == "remove_teacher_only":
    difference = jnp.where(t < 0, 0, difference)
  return jnp.sum(row_weights * jnp.sum(column_weights * difference**2, axis=-1))


def bicubic_downsample(patches: Array, size: tuple[int, int]) -> Array:
  """Resizes maps of patch features by bicubic interpolation, without antialiasing.

  Keys' kernel with a = -0.75, half-pixel centres and repeated borders, as PyTorch's
  `interpolate(mode="bicubic", align_corners=False)`: how the Gram teacher's features at a higher
  resolution come to the student's grid.

  Args:
    patches: [B, h, w, D]; the result keeps its dtype, sums run in float32.
    size: (H, W) of the result.

  Returns:
    [B, H, W, D].
  """
  rows, columns = (_bicubic_matrix(n, m) for n, m in zip(patches.shape[1:3], size))
  x = jnp.einsum("Hh,bhwd->bHwd", rows, patches.astype(jnp.float32), precision="highest")
  x = jnp.einsum("Ww,bHwd->bHWd", columns, x, precision="highest")
  return x.astype(patches.dtype)


@functools.cache
def _bicubic_matrix(source: int, target: int) -> np.ndarray:
  """The [target, source] matrix of one axis."""
  a = -0.75
  centre = (np.arange(target) + 0.5) * (source / target) - 0.5
  taps = np.floor(centre)[:, None] + np.arange(-1, 3)
  x = np.abs(centre[:, None] - taps)
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  matrix = np.zeros((target, source))
  columns = np.clip(taps, 0, source - 1).astype(int)
  np.add.at(matrix, (np.arange(target)[:, None], columns), np.where(x <= 1, near, far))
  return matrix.astype(np.float32)
