"""Sinkhorn-Knopp targets (SwAV, section 3.1; used by DINOv2 and DINOv3)."""

import math

import jax
import jax.numpy as jnp
from jax import Array


def sinkhorn_log_scales(logits: Array, temperature: float | Array, iterations: int = 3,
                        axes: tuple[str, ...] = ()) -> tuple[Array, Array]:
  """The two scaling vectors of a Sinkhorn assignment.

  Each iteration scales every prototype's column of `exp(logits / temperature)` to a sum of N / K
  over all samples, then every sample's row to a sum of one over all prototypes:

    u_k = log(N / K) - log sum_n exp(z_nk + v_n)
    v_n = -log sum_k exp(z_nk + u_k)              with z = logits / temperature

  starting from v = 0. The assignment is `exp(z_nk + u_k + v_n)`: its rows sum to one, its columns
  to N / K only in the limit. Finite for any finite `z`; targets, so no gradient flows back.

  Args:
    logits: [N, K], any float dtype. All samples that share the prototypes belong in one call (in
      DINO both global crops of the whole batch).
    temperature: of the teacher.
    iterations: at least 1.
    axes: under `jax.shard_map`, the mesh axes over which the samples are spread; each device passes
      as many.

  Returns:
    `u` [K] (`log_prototype_scale`) and `v` [N] (`log_sample_scale`), float32.
  """
  z, u = _balance(logits, temperature, iterations, axes)
  return u, -jax.nn.logsumexp(z + u, axis=1)


def sinkhorn(logits: Array, temperature: float | Array, iterations: int = 3) -> Array:
  """Sinkhorn's assignment of samples to prototypes, see `sinkhorn_log_scales`.

  Args:
    logits: [N, K], any float dtype.
    temperature: of the teacher.
    iterations: at least 1.

  Returns:
    [N, K] float32, each row a distribution over the prototypes.
  """
  z, u = _balance(logits, temperature, iterations)
  return jax.nn.softmax(z + u, axis=1)


def log_share(samples: int, prototypes: int, axes: tuple[str, ...]) -> float:
  """log(N / K), for `samples` on each device of `axes`."""
  return math.log(samples * jax.lax.axis_size(axes) / prototypes)


def log_sum(z: Array, axes: tuple[str, ...]) -> Array:
  """log sum exp over the first axis, and over the devices of `axes`."""
  top = jax.lax.pmax(z.max(axis=0), axes)
  return top + jnp.log(jax.lax.psum(jnp.exp(z - top).sum(axis=0), axes))


def _balance(logits: Array, temperature: float | Array, iterations: int,
             axes: tuple[str, ...] = ()) -> tuple[Array, Array]:
  """z [N, K] and u [K]; the last scaling of the rows is left to a softmax."""
  if logits.ndim != 2:
    raise ValueError(f"Sinkhorn takes logits of shape [samples, prototypes], got {logits.shape}.")
  if iterations < 1:
    raise ValueError(f"Sinkhorn needs at least one iteration, got {iterations}.")
  z = jax.lax.stop_gradient(logits.astype(jnp.float32) / temperature)
  share = log_share(*z.shape, axes)
  u = share - log_sum(z, axes)
  for _ in range(iterations - 1):
    # No entry exceeds 1 and every column keeps one of at least 1 / (N K): a plain sum is safe.
    u = u + share - jnp.log(jax.lax.psum(jax.nn.softmax(z + u, axis=1).sum(axis=0), axes))
  return z, u
