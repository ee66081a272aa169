"""Matrix products in 8 bits, with scales; in fp8 as the reference trains the blocks of its 7B.

Forward, every row of the input and every column of the weights has a scale of its own, which takes
its largest magnitude to the largest number of the 8 bits. Backward, the gradient of the input is
such a product, of the output's gradient with a scale a row and of the weights with one scale; the
gradient of the weights is computed in full, from factors that are not rounded.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3_jax.models.products import Dimensions, saveable

TYPES = {"fp8": jnp.float8_e4m3fn, "int8": jnp.int8}
CHOICES = ("", *TYPES)


def choose(graphs: dict[str, nnx.GraphDef], shapes: dict, matmul: str) -> dict[str, nnx.GraphDef]:
  """Networks whose blocks multiply as `config.train.matmul` asks; heads and embeddings do not.

  Args:
    graphs: by name, from `nnx.split`; the blocks are those of `backbone`, a ViT.
    shapes: the parameters that belong to them, or their shapes.
    matmul: one of `CHOICES`; "" changes nothing.
  """
  if not matmul:
    return graphs
  backbone = nnx.merge(graphs["backbone"], shapes["backbone"])
  backbone.blocks.set_attributes(dot_general=functools.partial(dot, TYPES[matmul]))
  return graphs | {"backbone": nnx.split(backbone)[0]}


def dot(kind: jnp.dtype, lhs: jax.Array, rhs: jax.Array, dimensions: Dimensions, *_: Any,
        **options: Any) -> jax.Array:
  """`lax.dot_general` of a linear layer, its factors rounded to 8 bits.

  Args:
    kind: float8_e4m3fn or int8.
    lhs: float [..., K].
    rhs: float [K, ...].
    dimensions: that sum over K.

  Returns:
    lhs' other axes, then rhs', of lhs' dtype.
  """
  del options  # layers give their defaults
  if dimensions != (((lhs.ndim - 1,), (0,)), ((), ())):
    raise ValueError(f"{dimensions} is not the product of a linear layer")
  return saveable(_dot(jnp.dtype(kind), lhs, rhs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(kind, lhs, rhs):
  outer = tuple(range(1, rhs.ndim))
  x, of_rows = _rounded(kind, lhs, (lhs.ndim - 1,))
  w, of_columns = _rounded(kind, rhs, (0,))
  y = _product(x, w, (lhs.ndim - 1,), (0,))
  return (y * jnp.expand_dims(of_rows[..., 0], tuple(range(-len(outer), 0)))
          * of_columns[0]).astype(lhs.dtype)


def _backward(kind, factors, gradient):
  lhs, rhs = factors
  batch = tuple(range(lhs.ndim - 1))
  outer = tuple(range(len(batch), gradient.ndim))
  g, of_rows = _rounded(kind, gradient, outer)
  w, scale = _rounded(kind, rhs, tuple(range(rhs.ndim)))
  d_lhs = _product(g, w, outer, tuple(range(1, rhs.ndim)))
  d_lhs *= of_rows.reshape(*lhs.shape[:-1], 1) * scale.reshape(())
  d_rhs = jax.lax.dot_general(lhs, gradient, ((batch, batch), ((), ())))
  return d_lhs.astype(lhs.dtype), d_rhs.astype(rhs.dtype)


_dot.defvjp(lambda kind, lhs, rhs: (_dot(kind, lhs, rhs), (lhs, rhs)), _backward)


def _rounded(kind: jnp.dtype, x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """x in 8 bits, and the float32 scales [.., 1, ..] that give it back."""
  x = x.astype(jnp.float32)
  is_float = jnp.issubdtype(kind, jnp.floating)
  largest = float(jnp.finfo(kind).max) if is_float else 127.0
  # Rows of zeros have a scale, too. Gradients may be as small as LayerScale's 1e-5 of others.
  scale = jnp.maximum(jnp.max(jnp.abs(x), axes, keepdims=True), 1e-30) / largest
  x /= scale
  # Division may come out a rounding above the largest number, which e4m3 has no infinity for.
  x = jnp.clip(x if is_float else jnp.round(x), -largest, largest)
  return x.astype(kind), scale


def _product(lhs, rhs, lhs_axes, rhs_axes):
  exact = jnp.float32 if jnp.issubdtype(lhs.dtype, jnp.floating) else jnp.int32
  return jax.lax.dot_general(lhs, rhs, ((lhs_axes, rhs_axes), ((), ())),
                             preferred_element_type=exact).astype(jnp.float32)
