"""Sinkhorn and cross-entropy over many prototypes, straight from the heads' bottlenecks.

A head ends in a product of its bottleneck with the prototypes' kernel. Its logits, rows times up to
262,144 prototypes in float32, are the largest arrays of a step. With `chunks` > 1 they exist for
one chunk of the prototypes at a time and are computed again where they are needed: Sinkhorn is two
vectors, the cross-entropy a few sums, and its gradient needs no more than these.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from dinov3_jax.losses.sinkhorn import log_share, log_sum, sinkhorn_log_scales


def sinkhorn_scales_from_bottleneck(
    bottleneck: Array, kernel: Array, temperature: float | Array, iterations: int = 3,
    chunks: int = 1, shards: int = 1, axes: tuple[str, ...] = ()) -> tuple[Array, Array]:
  """`sinkhorn_log_scales` of the logits `bottleneck @ kernel`.

  Products run in the bottleneck's dtype and accumulate in float32, one for each iteration.

  Args:
    bottleneck: [N, d], of all samples that share the prototypes.
    kernel: [d, K].
    temperature: of the teacher.
    iterations: at least 1.
    chunks: parts of K to go through one after the other; 1 holds all [N, K] logits at once.
    shards: devices over which K is sharded; each chunk takes an equal part from every one.
    axes: of the mesh over which samples are spread, see `sinkhorn_log_scales`.

  Returns:
    `log_prototype_scale` [K] and `log_sample_scale` [N], float32, without gradient.
  """
  bottleneck, kernel, temperature = jax.lax.stop_gradient((bottleneck, kernel, temperature))
  if chunks == 1:
    return sinkhorn_log_scales(_logits(bottleneck, kernel), temperature, iterations, axes)
  if iterations < 1:
    raise ValueError(f"Sinkhorn needs at least one iteration, got {iterations}.")
  _check_chunks(kernel, chunks, shards)
  take = functools.partial(_take, kernel, chunks=chunks, shards=shards)
  share = log_share(bottleneck.shape[0], kernel.shape[1], axes)

  def first(carry, i):
    row_max, row_sum = carry
    z = _logits(bottleneck, take(i)) / temperature
    u = share - log_sum(z, axes)
    return _add_exp(z + u, row_max, row_sum), u

  def again(v, row_sum, inputs):
    i, u = inputs
    assignment = jnp.exp(_logits(bottleneck, take(i)) / temperature + u + v[:, None])
    # As in the plain version, no sum can vanish from here on.
    log_scale = share - jnp.log(jax.lax.psum(assignment.sum(axis=0), axes))
    return row_sum + jnp.sum(assignment * jnp.exp(log_scale), axis=1), u + log_scale

  nothing = jnp.zeros(len(bottleneck))
  (row_max, row_sum), u = jax.lax.scan(first, (nothing - jnp.inf, nothing), jnp.arange(chunks))
  v = -row_max - jnp.log(row_sum)
  for _ in range(iterations - 1):
    row_sum, u = jax.lax.scan(functools.partial(again, v), nothing, (jnp.arange(chunks), u))
    v = v - jnp.log(row_sum)
  return u.reshape(chunks, shards, -1).swapaxes(0, 1).reshape(-1), v


def prototype_cross_entropy(
    student: Array, student_kernel: Array, teacher: Array, teacher_kernel: Array,
    log_prototype_scale: Array, log_sample_scale: Array, sample_weights: Array,
    teacher_temperature: float | Array, student_temperature: float = 0.1, chunks: int = 1,
    shards: int = 1) -> Array:
  """Cross-entropy of each student's crop with each teacher's, summed over samples.

  The DINO and iBOT losses (DINOv2, section 4) before their means:

    CE_st = -sum_b w_b sum_k p_btk log_softmax(student_bs @ student_kernel / student_temperature)_k
    p_btk = exp((teacher_bt @ teacher_kernel)_k / teacher_temperature + u_k + v_bt)

  DINO: the student's global and local crops as S, both global crops of the teacher as T, weights of
  one; then `CE[:2]` off the diagonal and `CE[2:]` are its global and local loss times their number
  of pairs and B. iBOT: B = M masked patches, S = T = 1, `w` the patches' weights.

  Args:
    student: [B, S, d] bottlenecks; products run in their dtype and accumulate in float32.
    student_kernel: [d, K].
    teacher: [B, T, d'] bottlenecks.
    teacher_kernel: [d', K].
    log_prototype_scale: `u` [K], of `sinkhorn_scales_from_bottleneck`.
    log_sample_scale: `v` [B, T].
    sample_weights: `w` [B].
    teacher_temperature: of the targets.
    student_temperature: of the student.
    chunks: parts of K to go through one after the other. With 1, [B, S + T, K] float32 are kept for
      the backward pass; with more, nothing as long as K is, and the logits are computed twice.
    shards: devices over which K is sharded; each chunk takes an equal part from every one.

  Returns:
    [S, T] float32. Gradients flow to `student` and `student_kernel` alone.
  """
  targets = jax.lax.stop_gradient((teacher, teacher_kernel, log_prototype_scale, log_sample_scale,
                                   jnp.asarray(teacher_temperature, jnp.float32), sample_weights))
  if student_kernel.shape[1] != teacher_kernel.shape[1]:
    raise ValueError(f"Student and teacher have {student_kernel.shape[1]} and "
                     f"{teacher_kernel.shape[1]} prototypes; give both heads the same number.")
  _check_chunks(student_kernel, chunks, shards)
  return _cross_entropy(student_temperature, chunks, shards, student, student_kernel, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _cross_entropy(temperature, chunks, shards, student, kernel, targets):
  return _forward(temperature, chunks, shards, student, kernel, targets)[0]


def _forward(temperature, chunks, shards, student, kernel, targets):
  logits = _logits_and_probs(temperature, chunks, shards, student, kernel, targets)
  batch, students, _ = student.shape
  teachers = targets[0].shape[1]

  def body(carry, i):
    row_max, row_sum, mass, product = carry
    z, probs = logits(i)
    product = product + jnp.stack(
      [jnp.sum(z * probs[:, t:t + 1], axis=-1) for t in range(teachers)], axis=-1)
    return (*_add_exp(z, row_max, row_sum), mass + probs.sum(axis=-1), product), None

  nothing = jnp.zeros((batch, students))
  carry = (nothing - jnp.inf, nothing, jnp.zeros((batch, teachers)),
           jnp.zeros((batch, students, teachers)))
  kept = None
  if chunks == 1:
    kept = logits(0)
    logits = lambda _: kept
    carry, _ = body(carry, 0)
  else:
    carry, _ = jax.lax.scan(body, carry, jnp.arange(chunks))
  row_max, row_sum, mass, product = carry
  log_norm = row_max + jnp.log(row_sum)
  # The mass is one up to rounding; with it, the gradient below is that of this very sum.
  loss = log_norm[..., None] * mass[:, None] - product
  loss = jnp.sum(targets[-1][:, None, None] * loss, axis=0)
  return loss, (student, kernel, targets, log_norm, mass, loss, kept)


def _backward(temperature, chunks, shards, residuals, cotangent):
  student, kernel, targets, log_norm, mass, loss, kept = residuals
  logits = _logits_and_probs(temperature, chunks, shards, student, kernel, targets)
  pull = cotangent * (targets[-1] / temperature)[:, None, None]
  push = jnp.sum(pull * mass[:, None], axis=-1, keepdims=True)

  def gradients(z, probs, kernel):
    d_logits = push * jnp.exp(z - log_norm[..., None]) - sum(
      pull[:, :, t:t + 1] * probs[:, t:t + 1] for t in range(probs.shape[1]))
    d_logits = d_logits.astype(student.dtype)
    return (jnp.einsum("bsk,dk->bsd", d_logits, kernel.astype(student.dtype),
                       preferred_element_type=jnp.float32),
            jnp.einsum("bsd,bsk->dk", student, d_logits, preferred_element_type=jnp.float32))

  if chunks == 1:
    d_student, d_kernel = gradients(*kept, kernel)
    return d_student.astype(student.dtype), d_kernel.astype(kernel.dtype), None

  def body(carry, i):
    d_student, d_kernel = carry
    part, chunk = gradients(*logits(i), _take(kernel, i, chunks, shards))
    # Written in place: stacking the chunks would need the whole kernel a second time.
    d_kernel = _put(d_kernel, _bits(chunk.astype(kernel.dtype)), i, chunks, shards)
    return (d_student + part, d_kernel), None

  # All of it is overwritten. Zeros would be one array for several calls, copied by each; a number
  # of this call's own gives it the only copy.
  carry = jnp.zeros(student.shape), _bits(jnp.full(kernel.shape, loss[0, 0], kernel.dtype))
  (d_student, d_kernel), _ = jax.lax.scan(body, carry, jnp.arange(chunks))
  return d_student.astype(student.dtype), _numbers(d_kernel, kernel.dtype), None


_cross_entropy.defvjp(_forward, _backward)


def _logits_and_probs(temperature: float, chunks: int, shards: int, student: Array, kernel: Array,
                      targets: tuple) -> Callable:
  """Maps a chunk's index to the student's scaled logits and the teacher's probabilities there."""
  teacher, teacher_kernel, u, v, teacher_temperature, _ = targets
  take = functools.partial(_take, chunks=chunks, shards=shards)

  def chunk(i):
    z = _logits(student, take(kernel, i)) / temperature
    y = _logits(teacher, take(teacher_kernel, i)) / teacher_temperature
    return z, jnp.exp(y + take(u[None], i) + v[..., None])

  return chunk


def fold_logits(rows: Array, kernel: Array, f: Callable, carry: Any, chunks: int = 1,
                shards: int = 1) -> Any:
  """`f(carry, logits) -> carry` over the logits `rows @ kernel`, [N, K / chunks] at a time.

  Args:
    rows: [N, d]; products run in their dtype and accumulate in float32.
    kernel: [d, K].
    f: called in turn for every chunk.
    carry: what the first call takes.
    chunks, shards: see `sinkhorn_scales_from_bottleneck`.

  Returns:
    What the last call gives.

  Raises:
    ValueError: K does not divide.
  """
  if chunks == 1:
    return f(carry, _logits(rows, kernel))
  _check_chunks(kernel, chunks, shards)
  body = lambda carry, i: (f(carry, _logits(rows, _take(kernel, i, chunks, shards))), None)
  return jax.lax.scan(body, carry, jnp.arange(chunks))[0]


def _logits(rows: Array, kernel: Array) -> Array:
  return jnp.matmul(rows, kernel.astype(rows.dtype), preferred_element_type=jnp.float32)


def _add_exp(x: Array, row_max: Array, row_sum: Array) -> tuple[Array, Array]:
  """Adds columns `x` to a log-sum-exp over the last axis, kept as (maximum, sum below it)."""
  new_max = jnp.maximum(row_max, x.max(axis=-1))
  return new_max, row_sum * jnp.exp(row_max - new_max) + jnp.exp(x - new_max[..., None]).sum(-1)


def _take(kernel: Array, i: Array | int, chunks: int, shards: int) -> Array:
  """Chunk `i` of [d, K]: [d, K / chunks], an equal part from every shard of K."""
  width = kernel.shape[1] // (chunks * shards)
  parts = kernel.reshape(len(kernel), shards, -1)
  return jax.lax.dynamic_slice_in_dim(parts, i * width, width, axis=2).reshape(len(kernel), -1)


def _put(kernel: Array, chunk: Array, i: Array | int, chunks: int, shards: int) -> Array:
  """Writes what `_take` would read."""
  width = kernel.shape[1] // (chunks * shards)
  parts, chunk = (x.reshape(len(kernel), shards, -1) for x in (kernel, chunk))
  return jax.lax.dynamic_update_slice_in_dim(parts, chunk, i * width, axis=2).reshape(kernel.shape)


def _bits(x: Array) -> Array:
  """bfloat16 as uint16, which a CPU writes in place; bfloat16 it would convert whole each time."""
  return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _numbers(x: Array, dtype: jnp.dtype) -> Array:
  """The inverse of `_bits`."""
  return jax.lax.bitcast_convert_type(x, dtype) if x.dtype != dtype else x


def _check_chunks(kernel: Array, chunks: int, shards: int):
  if min(chunks, shards) < 1 or kernel.shape[1] % (chunks * shards):
    raise ValueError(f"{kernel.shape[1]} prototypes do not divide into {chunks} chunks on {shards} "
                     "shards; choose another number of chunks.")
