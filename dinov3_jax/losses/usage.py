"""Signs of how a training fares, read from the teacher's outputs: collapse shows in them early."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from dinov3_jax.losses.prototypes import fold_logits


def cls_patch_cosine(cls: Array, patches: Array) -> Array:
  """Mean cosine between the CLS feature and the patch features of its image.

  Where training goes on for long, it rises while dense features lose their detail (DINOv3, section
  4.1 and figure 5a).

  Args:
    cls: [B, D], any float dtype.
    patches: [B, N, D].

  Returns:
    Scalar, float32, without gradient.
  """
  cls, patches = (_unit(jax.lax.stop_gradient(x).astype(jnp.float32)) for x in (cls, patches))
  return jnp.mean(jnp.einsum("bnd,bd->bn", patches, cls))


def prototype_usage(bottleneck: Array, kernel: Array, temperature: float | Array, chunks: int = 1,
                    shards: int = 1, axes: tuple[str, ...] = ()) -> tuple[Array, Array]:
  """How sharply samples choose prototypes, and how many of these are chosen at all.

    entropy = mean_n H(q_n) / log K,  use = exp(H(mean_n q_n)) / K,  q_n = softmax(z_n / T)

  before Sinkhorn balances the assignment. H is Shannon's entropy. Where all samples choose one
  prototype, `use` is 1 / K; where nothing distinguishes the samples, both are close to 1.

  Args:
    bottleneck: [N, d], samples; products run in their dtype and accumulate in float32.
    kernel: [d, K].
    temperature: T, of the teacher.
    chunks, shards, axes: see `prototypes.sinkhorn_scales_from_bottleneck`.

  Returns:
    (`entropy`, `use`), float32 scalars in [0, 1], without gradient; of the samples on all devices.
  """
  bottleneck, kernel, temperature = jax.lax.stop_gradient((bottleneck, kernel, temperature))
  fold = functools.partial(fold_logits, bottleneck, kernel, chunks=chunks, shards=shards)
  count = bottleneck.shape[0] * jax.lax.axis_size(axes)

  def add_exp(carry, z):
    top, total = carry
    new = jnp.maximum(top, jnp.max(z / temperature, axis=1))
    return new, total * jnp.exp(top - new) + jnp.sum(
      jnp.exp(z / temperature - new[:, None]), axis=1)

  nothing = jnp.zeros(len(bottleneck))
  top, total = fold(add_exp, (nothing - jnp.inf, nothing))
  norm = (top + jnp.log(total))[:, None]

  def add_entropies(carry, z):
    of_samples, of_mean = carry
    log_q = z / temperature - norm
    q = jnp.exp(log_q)
    mean = jax.lax.psum(jnp.sum(q, axis=0), axes) / count
    return (of_samples - jnp.sum(q * log_q),
            of_mean - jnp.sum(mean * jnp.log(jnp.where(mean > 0, mean, 1))))

  of_samples, of_mean = fold(add_entropies, (jnp.zeros(()), jnp.zeros(())))
  prototypes = kernel.shape[1]
  of_samples = jax.lax.psum(of_samples, axes) / count
  return of_samples / math.log(max(prototypes, 2)), jnp.exp(of_mean) / prototypes


def _unit(x: Array) -> Array:
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))
