"""Sinkhorn-Knopp targets (SwAV, section 3.1; used by DINOv2 and DINOv3)."""

import math

import jax
import jax.numpy as jnp
from jax import Array


def sinkhorn_log_scales(logits: Array, temperature: float | Array,
                        iterations: int = 3) -> tuple[Array, Array]:
  """The two scaling vectors of a Sinkhorn assignment.

  Each iteration scales every prototype's column of `exp(logits / temperature)` to a sum of N / K
  over all samples, then every sample's row to a sum of one over all prototypes:

    u_k = log(N / K) - log sum_n exp(z_nk + v_n)
    v_n = -log sum_k exp(z_nk + u_k)              with z = logits / temperature

  starting from v = 0. The assignment is `exp(z_nk + u_k + v_n)`: its rows sum to one, its columns
  to N / K only in the limit. Finite for any finite `z`; targets, so no gradient flows back.

  Args:
    logits: [N, K], any float dtype. All samples that share the prototypes belong in one call (in
      DINO both global crops of the whole batch); rows may be sharded over devices.
    temperature: of the teacher.
    iterations: at least 1.

  Returns:
    `u` [K] (`log_prototype_scale`) and `v` [N] (`log_sample_scale`), float32.
  """
  z, u = _balance(logits, temperature, iterations)
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


def _balance(logits: Array, temperature: float | Array, iterations: int) -> tuple[Array, Array]:
  """z [N, K] and u [K]; the last scaling of the rows is left to a softmax."""
  if logits.ndim != 2:
    raise ValueError(f"Sinkhorn takes logits of shape [samples, prototypes], got {logits.shape}.")
  if iterations < 1:
    raise ValueError(f"Sinkhorn needs at least one iteration, got {iterations}.")
  z = jax.lax.stop_gradient(logits).astype(jnp.float32) / temperature
  log_share = math.log(z.shape[0] / z.shape[1])
  u = log_share - jax.nn.logsumexp(z, axis=0)
  for _ in range(iterations - 1):
    # No entry exceeds 1 and every column keeps one of at least 1 / (N K): a plain sum is safe.
    u = u + log_share - jnp.log(jax.nn.softmax(z + u, axis=1).sum(axis=0))
  return z, u
