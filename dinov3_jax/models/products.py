"""Matrix products of bfloat16, as the platform at hand computes them fast and precisely."""

import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # Linux's names, for x86 and for Arm

PRODUCT = "product"  # names what `products_saveable` keeps

Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


@functools.cache
def cpu_multiplies_bfloat16() -> bool:
  """Whether this machine's CPU has instructions for products of bfloat16; no where it is not said.
  """
  try:
    return has_instructions(pathlib.Path("/proc/cpuinfo").read_text())
  except OSError:  # not Linux
    return False


def has_instructions(cpuinfo: str) -> bool:
  """Whether the first processor in the text of a /proc/cpuinfo has one of `INSTRUCTIONS`."""
  for line in cpuinfo.splitlines():
    name, _, value = line.partition(":")
    if name.strip() in ("flags", "Features"):
      return not INSTRUCTIONS.isdisjoint(value.split())
  return False


def inference_dot(lhs: jax.Array, rhs: jax.Array, dimensions, precision=None, **options
                  ) -> jax.Array:
  """`lax.dot_general` whose product of bfloat16 is in float32, for layers to round it when done.

  On a CPU without instructions for bfloat16 the factors, too, are in float32, which changes no
  product and is faster there. It is for forward passes alone; a rematerialisation policy would not
  recognise it.
  """
  dot = functools.partial(jax.lax.dot_general, dimension_numbers=dimensions, precision=precision,
                          **options)
  if lhs.dtype != jnp.bfloat16:
    return dot(lhs, rhs)
  if cpu_multiplies_bfloat16():
    on_cpu = functools.partial(dot, preferred_element_type=jnp.float32)
  else:
    on_cpu = lambda lhs, rhs: dot(lhs.astype(jnp.float32), rhs.astype(jnp.float32))
  return jax.lax.platform_dependent(
    lhs, rhs, cpu=on_cpu, default=lambda lhs, rhs: dot(lhs, rhs).astype(jnp.float32))


def for_training(graphs: dict[str, nnx.GraphDef], shapes: dict, platform: str, dtype: jnp.dtype
                 ) -> dict[str, nnx.GraphDef]:
  """Networks whose layers multiply as the platform that trains them does best.

  XLA computes a product on a CPU in bfloat16 only where its result is asked for in float32, which
  neither `lax.dot_general` nor its gradients do by themselves: `cpu_dot` does. All others are left
  as they are.

  Args:
    graphs: by name, from `nnx.split`.
    shapes: the parameters that belong to them, or their shapes.
    platform: as JAX names it, of the devices that train.
    dtype: that the networks compute in.
  """
  if platform != "cpu" or dtype != jnp.bfloat16 or not cpu_multiplies_bfloat16():
    return graphs
  return {name: _with_dot(graph, shapes[name], cpu_dot) for name, graph in graphs.items()}


def _with_dot(graph: nnx.GraphDef, params: dict, dot: Callable) -> nnx.GraphDef:
  module = nnx.merge(graph, params)
  module.set_attributes(dot_general=dot, raise_if_not_found=False)  # a foreign one has no layers
  return nnx.split(module)[0]


def cpu_dot(lhs: jax.Array, rhs: jax.Array, dimensions: Dimensions, precision=None, **options
            ) -> jax.Array:
  """`lax.dot_general` of bfloat16, summed in float32, and gradients computed likewise.

  Args:
    lhs, rhs: bfloat16.
    dimensions: as of `lax.dot_general`, without batch dimensions.

  Returns:
    float32, rounded to the numbers of bfloat16, which are what `products_saveable` keeps. Layers
    add the bias to it in float32, so that the bias' gradient is summed in float32, too.
  """
  del precision, options  # layers give their defaults
  (lhs_axes, rhs_axes), batch = dimensions
  if any(batch):
    raise ValueError(f"batch dimensions {batch} are not supported")
  return _cpu_dot(lhs, rhs, tuple(lhs_axes), tuple(rhs_axes))


@jax.custom_vjp
def saveable(x: jax.Array) -> jax.Array:
  """x, which `products_saveable` keeps for the backward pass."""
  return _named(x)


def _named(x: jax.Array) -> jax.Array:
  if x.dtype != jnp.bfloat16:
    return checkpoint_name(x, PRODUCT)
  # As bits, because a CPU would convert all that a scan has kept to float32 at once. Bits have no
  # gradient, hence the rule of `saveable`.
  bits = checkpoint_name(jax.lax.bitcast_convert_type(x, jnp.uint16), PRODUCT)
  return jax.lax.bitcast_convert_type(bits, x.dtype)


saveable.defvjp(lambda x: (_named(x), None), lambda _, gradient: (gradient,))


def products_saveable(primitive, *shapes, **params) -> bool:
  """A policy for `jax.checkpoint`: keep what is `saveable`, and products without batch dimensions.

  Not those that `cpu_dot` has in float32, nor those of 8 bits, whose scales come after them: both
  make what they give `saveable`.
  """
  if primitive is jax.lax.dot_general_p and (shapes[0].dtype.itemsize == 1 or (
      shapes[0].dtype == jnp.bfloat16 and params["preferred_element_type"] == jnp.float32)):
    return False
  policies = jax.checkpoint_policies
  return (policies.dots_with_no_batch_dims_saveable(primitive, *shapes, **params)
          or policies.save_only_these_names(PRODUCT)(primitive, *shapes, **params))


def _product(lhs, rhs, lhs_axes, rhs_axes):
  return jax.lax.dot_general(lhs, rhs, ((lhs_axes, rhs_axes), ((), ())),
                             preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_dot(lhs, rhs, lhs_axes, rhs_axes):
  product = _product(lhs, rhs, lhs_axes, rhs_axes)
  return _named(product.astype(lhs.dtype)).astype(jnp.float32)


def _forward(lhs, rhs, *axes):
  return _cpu_dot.fun(lhs, rhs, *axes), (lhs, rhs)


def _backward(lhs_axes, rhs_axes, factors, gradient):
  lhs, rhs = factors
  lhs_free = tuple(i for i in range(lhs.ndim) if i not in lhs_axes)
  rhs_free = tuple(i for i in range(rhs.ndim) if i not in rhs_axes)
  # It comes from a value that was rounded, or is rounded now, as between layers of bfloat16.
  gradient = gradient.astype(lhs.dtype)
  axes = tuple(range(gradient.ndim))
  of_lhs, of_rhs = axes[:len(lhs_free)], axes[len(lhs_free):]
  # A product has the free axes of its factors in their order; each axis goes back to its place.
  d_lhs = _product(gradient, rhs, of_rhs, rhs_free)
  partners = tuple(lhs_axes[rhs_axes.index(i)] for i in sorted(rhs_axes))
  d_lhs = d_lhs.astype(lhs.dtype).transpose(_inverse(lhs_free + partners))
  # XLA turns the first factor of this product around, together with all that computes it: let it
  # be the smaller one.
  partners = tuple(rhs_axes[lhs_axes.index(i)] for i in sorted(lhs_axes))
  if lhs.size <= gradient.size:
    d_rhs, order = _product(lhs, gradient, lhs_free, of_lhs), partners + rhs_free
  else:
    d_rhs, order = _product(gradient, lhs, of_lhs, lhs_free), rhs_free + partners
  d_rhs = d_rhs.astype(rhs.dtype).transpose(_inverse(order))
  return d_lhs, d_rhs


def _inverse(order: tuple[int, ...]) -> list[int]:
  return [order.index(i) for i in range(len(order))]


_cpu_dot.defvjp(_forward, _backward)
