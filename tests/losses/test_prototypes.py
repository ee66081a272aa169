import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.losses import (
  prototype_cross_entropy,
  sinkhorn,
  sinkhorn_log_scales,
  sinkhorn_scales_from_bottleneck,
)

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "losses.npz")
B, S, T, D, K = 4, 5, 2, 16, 240
CHUNKS = [dict(chunks=1), dict(chunks=24), dict(chunks=6, shards=4)]


@functools.cache
def inputs(dtype="float32"):
  keys = jax.random.split(jax.random.key(0), 6)
  return dict(
    student=jax.random.normal(keys[0], (B, S, D), dtype),
    student_kernel=jax.random.normal(keys[1], (D, K)) / 10,
    teacher=jax.random.normal(keys[2], (B, T, D), dtype),
    teacher_kernel=jax.random.normal(keys[3], (D, K)) / 10,
    sample_weights=jax.random.uniform(keys[4], (B,)),
    pair_weights=jax.random.normal(keys[5], (S, T)))


def losses(student, student_kernel, teacher, teacher_kernel, sample_weights, temperature, **parts):
  u, v = sinkhorn_scales_from_bottleneck(
    teacher.reshape(-1, teacher.shape[-1]), teacher_kernel, temperature, **parts)
  return prototype_cross_entropy(student, student_kernel, teacher, teacher_kernel, u,
                                 v.reshape(teacher.shape[:2]), sample_weights, temperature, **parts)


def plain_losses(student, student_kernel, teacher, teacher_kernel, sample_weights, temperature):
  logits = teacher @ teacher_kernel
  targets = sinkhorn(logits.reshape(-1, K), temperature).reshape(logits.shape)
  log_probs = jax.nn.log_softmax(student @ student_kernel / 0.1)
  return -jnp.einsum("b,bsk,btk->st", sample_weights, log_probs, targets)


@functools.cache
def compiled(function, **parts):
  @jax.jit
  def call(student, student_kernel, temperature, pair_weights, rest):
    def total(*args):
      matrix = function(*args, temperature=temperature, **rest, **parts)
      return jnp.sum(pair_weights * matrix), matrix

    (_, matrix), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(
      student, student_kernel)
    return matrix, *gradients

  return call


def value_and_gradients(function, data, **parts):
  rest = dict(data)
  student, kernel, weights = (rest.pop(k) for k in ("student", "student_kernel", "pair_weights"))
  return compiled(function, **parts)(student, kernel, 0.07, weights, rest)


@pytest.mark.parametrize("parts", CHUNKS)
def test_equals_plain_losses_and_gradients(parts):
  expected = value_and_gradients(plain_losses, inputs())
  for x, y in zip(value_and_gradients(losses, inputs(), **parts), expected):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize("scale, iterations", [(1, 1), (1, 3), (300, 3)])
@pytest.mark.parametrize("parts", CHUNKS[1:])
def test_scales_equal_plain_ones(parts, scale, iterations):
  # The larger scale takes exp() far out of float32's range, for whole rows too.
  rows = scale * (inputs()["teacher"].reshape(-1, D) + jnp.arange(B * T)[:, None] / 8)
  kernel = inputs()["teacher_kernel"] - 0.1
  z = rows @ kernel / 0.07
  expected = sinkhorn_log_scales(z, 1.0, iterations)
  ours = sinkhorn_scales_from_bottleneck(rows, kernel, 0.07, iterations, **parts)
  for x, y in zip(ours, expected):
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x, y, atol=1e-6 * jnp.abs(z).max())
  if scale == 1:
    np.testing.assert_allclose(jnp.exp(z + ours[0] + ours[1][:, None]).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("chunks", [1, 37])
def test_reference(chunks):
  """Where the kernel is the identity, bottlenecks are logits."""
  eye = np.eye(37, dtype=np.float32)
  student = np.concatenate([GOLDEN["s_global"], GOLDEN["s_local"]]).swapaxes(0, 1)
  teacher = GOLDEN["sk_in"].reshape(2, 4, 37).swapaxes(0, 1)
  call = jax.jit(functools.partial(losses, chunks=chunks))
  matrix = call(student, eye, teacher, eye, np.ones(4, np.float32), 0.07) / 4
  np.testing.assert_allclose((matrix[0, 1] + matrix[1, 0]) / 2, GOLDEN["dino_global_diag"],
                             rtol=1e-5)
  np.testing.assert_allclose(matrix[:2].mean(), GOLDEN["dino_global_all"], rtol=1e-5)
  np.testing.assert_allclose(matrix[2:].mean(), GOLDEN["dino_local"], rtol=1e-5)

  patches = len(GOLDEN["ibot_s"])
  call = jax.jit(functools.partial(prototype_cross_entropy, chunks=chunks))
  loss = call(
    GOLDEN["ibot_s"][:, None], eye, np.log(GOLDEN["ibot_t"])[:, None], eye, np.zeros(37),
    np.zeros((patches, 1)), GOLDEN["masks_weight"], 1.0)
  np.testing.assert_allclose(loss[0, 0] / len(GOLDEN["masks"]), GOLDEN["ibot_loss"], rtol=1e-5)


@pytest.mark.parametrize("chunks", [1, 24])
def test_bfloat16_products_accumulate_in_float32(chunks):
  # Inputs that bfloat16 holds exactly: only the gradient of the logits is rounded.
  data = dict(inputs("bfloat16"))
  for key in ("student_kernel", "teacher_kernel"):
    data[key] = data[key].astype(jnp.bfloat16).astype(jnp.float32)
  exact = {key: x.astype(jnp.float32) for key, x in data.items()}
  expected = value_and_gradients(plain_losses, exact)
  matrix, d_student, d_kernel = value_and_gradients(losses, data, chunks=chunks)
  assert (matrix.dtype, d_student.dtype, d_kernel.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
  np.testing.assert_allclose(matrix, expected[0], rtol=1e-5)
  for ours, y in zip((d_student, d_kernel), expected[1:]):
    np.testing.assert_allclose(ours.astype(jnp.float32), y, atol=0.01 * np.abs(y).max())


def test_only_the_student_gets_gradients():
  data = dict(inputs())
  data.pop("pair_weights")

  def total(targets):
    return losses(data["student"], data["student_kernel"], **targets, chunks=2).sum()

  targets = {key: data[key] for key in ("teacher", "teacher_kernel", "sample_weights")}
  gradients = jax.jit(jax.grad(total))(dict(targets, temperature=jnp.float32(0.07)))
  chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))


def temporary_bytes(prototypes, chunks):
  """Of the gradient of two heads' losses."""
  rows, width = 64, 32
  head = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (
    (rows, 1, width), (width, prototypes), (rows, 1, width), (width, prototypes), (rows,), ())]
  gradient = jax.grad(
    lambda *args: sum(losses(*args[i::2], chunks=chunks).sum() for i in range(2)), (0, 1, 2, 3))
  shapes = [shape for shape in head for _ in range(2)]
  return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_prototypes():
  few, many = 4096, 16_384
  chunked = temporary_bytes(many, many // 512)
  # Sinkhorn's scale of each prototype is all that may grow, in a few copies.
  assert chunked - temporary_bytes(few, few // 512) <= 16 * (many - few)
  # Whole, the student's and the teacher's [64, K] float32 are there at once.
  assert temporary_bytes(many, 1) >= 2 * 64 * many * 4 > 5 * chunked


def test_errors():
  data = inputs()
  rows = data["teacher"].reshape(-1, D)
  with pytest.raises(ValueError, match="240 prototypes do not divide into 7 chunks"):
    sinkhorn_scales_from_bottleneck(rows, data["teacher_kernel"], 0.07, chunks=7)
  u, v = sinkhorn_scales_from_bottleneck(rows, data["teacher_kernel"], 0.07)
  with pytest.raises(ValueError, match="24 chunks on 4 shards"):
    prototype_cross_entropy(data["student"], data["student_kernel"], data["teacher"],
                            data["teacher_kernel"], u, v.reshape(B, T), data["sample_weights"],
                            0.07, chunks=24, shards=4)
  with pytest.raises(ValueError, match="240 and 120 prototypes"):
    prototype_cross_entropy(data["student"], data["student_kernel"], data["teacher"],
                            data["teacher_kernel"][:, :120], u, v.reshape(B, T),
                            data["sample_weights"], 0.07)
