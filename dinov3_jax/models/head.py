"""The projection head of DINO and iBOT."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3_jax.models.layers import gelu, linear


class DINOHead(nnx.Module):
  """An MLP to a normalised bottleneck, then one dot product with each prototype.

  The last layer is a plain matrix: no weight norm, prototypes are not normalised (reference).
  """

  def __init__(self, width: int, *, prototypes: int, hidden: int, bottleneck: int, layers: int,
               rngs: nnx.Rngs):
    if layers < 1:
      raise ValueError(f"a head needs at least one layer, not {layers}")
    widths = [width, *[hidden] * (layers - 1), bottleneck]
    self.mlp = nnx.Dict({str(i): linear(a, b, True, rngs=rngs)
                         for i, (a, b) in enumerate(itertools.pairwise(widths))})
    self.last_layer = linear(bottleneck, prototypes, False, rngs=rngs)

  def bottleneck(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., bottleneck], of unit length."""
    dtype = x.dtype
    for i in range(len(self.mlp)):
      x = self.mlp[str(i)](x if i == 0 else gelu(x).astype(dtype))
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(dtype)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> logits [..., prototypes]."""
    return self.last_layer(self.bottleneck(x))
