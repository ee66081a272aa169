"""Low-rank adapters: a few parameters that learn beside frozen weights (LoRA, arXiv:2106.09685)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

SUFFIX = "_adapter"  # of the name of an adapter, after that of the layer which it adapts


class Adapter(nnx.Module):
  """x -> (x a) b, which is added to what a dense layer makes of x.

  `b` is zero at first, so that a network with fresh adapters is the one without them, and `a` is
  from N(0, 1 / width), so that x a is as large as x. There is no further scale: the learning rate
  does the same.
  """

  def __init__(self, width: int, out: tuple[int, ...], rank: int, *, rngs: nnx.Rngs):
    """Args:
      width: of the input.
      out: the shape of a token in the output.
      rank: of the product.
    """
    self.a = nnx.Param(jax.random.normal(rngs.params(), (width, rank)) / math.sqrt(width))
    self.b = nnx.Param(jnp.zeros((rank, *out)))

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., width] -> [..., *out]."""
    return jnp.tensordot(x @ self.a[...], self.b[...], 1)


def is_adapter(name: str) -> bool:
  """Whether a part of a network, by its name, is an adapter."""
  return name.endswith(SUFFIX)


def fold(params: dict[str, Any]) -> dict[str, Any]:
  """The parameters of the same network without adapters.

  Each adapter's product, in float32, is added to the kernel beside it; blocks may be stacked on a
  leading axis.

  Args:
    params: a tree of dicts; `attn` with `qkv`, `qkv_adapter`, `proj` and `proj_adapter`, say.

  Returns:
    A new tree, its kernels of the dtypes they had.
  """
  if not isinstance(params, dict):
    return params
  folded = {name: fold(part) for name, part in params.items() if not is_adapter(name)}
  for name, part in params.items():
    if is_adapter(name):
      layer = folded[name.removesuffix(SUFFIX)]
      layer["kernel"] = _sum(layer["kernel"], part["a"], part["b"])
  return folded


@jax.jit
def _sum(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  product = jnp.einsum("...wr,...rk->...wk", a, b.reshape(*a.shape[:-2], b.shape[a.ndim - 2], -1),
                       precision="highest")
  return (kernel.astype(jnp.float32) + product.reshape(kernel.shape)).astype(kernel.dtype)
