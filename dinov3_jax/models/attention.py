"""Attention proper, softmax(q k^T) v, and what computes it on which platform."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

LONG = 1024  # tokens from which on attention's scores are the largest arrays of a block

CHOICES = ("auto", "xla", "cudnn")


def attention(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool = False) -> jax.Array:
  """softmax(q k^T / sqrt(d)) v of every head, with scores, softmax and sums in float32.

  Args:
    q, k, v: [B, T, heads, d].
    causal: a token attends to none that come after it.

  Returns:
    [B, T, heads, d] of v's dtype.
  """
  # Heads before tokens and one division at the end: on a CPU twice as fast as
  # `jax.nn.dot_product_attention`, gradients included, and nowhere more work.
  q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
  scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
  scores *= q.shape[-1] ** -0.5
  if causal:
    scores = jnp.where(jnp.tri(q.shape[2], dtype=bool), scores, -jnp.inf)
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
  x = jnp.einsum("bhts,bhsd->bhtd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
  x /= weights.sum(-1, keepdims=True)
  return x.astype(v.dtype).swapaxes(1, 2)


def long_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """`attention` of many tokens: on TPUs, where it can be, a kernel that keeps no scores.

  It can be in training, whose step says what lies on which device, if `tensor` divides the heads;
  and wherever a program is for one device. Elsewhere the compiler spreads arrays, which it cannot
  do with a kernel.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.manual_axes:
    if q.shape[2] % mesh.shape.get("tensor", q.shape[2] + 1):
      return attention(q, k, v)
    flash = _for_each_head(flash_attention)
  elif is_on_one_device(q):
    flash = flash_attention
  else:
    return attention(q, k, v)
  return jax.lax.platform_dependent(q, k, v, tpu=flash, default=attention)


def is_on_one_device(x: jax.Array) -> bool:
  """Whether a program that is being traced, and has x in it, is certain to be for one device.

  Its mesh tells where arguments are on one. Without, they may still be spread by what the caller
  asks of `jax.jit`, or be for a machine that is not there, unless all there is is one TPU.
  """
  mesh = jax.typeof(x).sharding.mesh
  if not mesh.empty:
    return mesh.size == 1
  return jax.default_backend() == "tpu" and jax.device_count() == 1


def _for_each_head(attend: Attend) -> Attend:
  """`attend` inside `jax.shard_map` over the data axes, on those heads that each device has."""
  heads = P(None, None, "tensor")
  return jax.shard_map(attend, in_specs=heads, out_specs=heads, axis_names={"tensor"},
                       check_vma=False)


def flash_attention(q: jax.Array, k: jax.Array, v: jax.Array, interpret: bool = False) -> jax.Array:
  """`attention` by JAX's own Pallas kernel for TPUs, block by block (FlashAttention).

  Args:
    q, k, v: [B, T, heads, d].
    interpret: run it on any device, slowly.

  Returns:
    [B, T, heads, d].
  """
  tokens, heads, width = q.shape[1:]
  block = min(range(768, 256, -128), key=lambda block: -tokens % block)
  padding = -tokens % block
  q, k, v = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))
             for x in (q * width ** -0.5, k, v))
  mask = splash_attention.MultiHeadMask(
      [splash_attention.FullMask((tokens + padding,) * 2) for _ in range(heads)])
  sizes = splash_attention.BlockSizes(
      **{f"block_{name}": block for name in ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")})
  kernel = splash_attention.make_splash_mha(
      mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
  is_padding = (jnp.arange(tokens + padding) >= tokens).astype(jnp.int32)
  segments = splash_attention.SegmentIds(is_padding, is_padding)  # one does not see the other
  return jax.vmap(kernel, (0, 0, 0, None))(q, k, v, segments)[:, :, :tokens].swapaxes(1, 2)


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "cudnn"
                    ) -> jax.Array:
  """`attention` by cuDNN's kernel for NVIDIA GPUs, which keeps no scores; of any length.

  Args:
    q, k, v: [B, T, heads, d], bfloat16 or float16, d as `check_cudnn` has it.
    implementation: of `jax.nn.dot_product_attention`; "xla" computes the same anywhere.

  Returns:
    [B, T, heads, d] of their dtype.

  Raises:
    ValueError: inside `jax.shard_map`, `tensor` does not divide the heads.
  """
  attend = functools.partial(_evenly, implementation=implementation)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.manual_axes and "tensor" in set(mesh.axis_names) - set(mesh.manual_axes):
    if q.shape[2] % mesh.shape["tensor"]:
      raise ValueError(f"attention by cuDNN cannot cut {q.shape[2]} heads over "
                       f"{mesh.shape['tensor']} devices: take a number for mesh.tensor that "
                       "divides them")
    attend = _for_each_head(attend)
  return attend(q, k, v)


def _evenly(q, k, v, implementation):
  """An odd number of tokens is made even, as cuDNN has kernels that want it so. Keys that are added
  are seen by nobody; the results of queries that are added are left out, and have no gradient."""
  tokens = q.shape[1]
  lengths = None
  if tokens % 2:
    q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full(len(q), tokens, jnp.int32)
  return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths,
                                      implementation=implementation)[:, :tokens]


def check_cudnn(platform: str, dtype: jnp.dtype, heads: int, width: int):
  """Raises a ValueError, of one line, if `cudnn_attention` cannot be.

  Args:
    platform: as JAX names it.
    dtype: that the network computes in.
    heads: how many.
    width: of a head; cuDNN wants a multiple of 8, up to 256 from Hopper on and 128 before.
  """
  if platform != "gpu":
    raise ValueError(f"attention 'cudnn' is for NVIDIA GPUs, not for a {platform}: take 'auto'")
  if dtype not in (jnp.bfloat16, jnp.float16):
    raise ValueError(f"attention 'cudnn' computes in bfloat16 or float16, not in {dtype}: change "
                     "the dtype, or take 'auto'")
  x = jax.ShapeDtypeStruct((1, 2, heads, width), dtype)
  gradients = jax.grad(lambda *x: cudnn_attention(*x).astype(jnp.float32).sum(), (0, 1, 2))
  try:
    jax.eval_shape(gradients, x, x, x)
  except (RuntimeError, NotImplementedError, ValueError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ValueError(f"attention 'cudnn' is not possible here: {reason} Take 'auto'") from error


def choose(graphs: dict[str, nnx.GraphDef], shapes: dict, choice: str, platform: str,
           dtype: jnp.dtype) -> dict[str, nnx.GraphDef]:
  """Networks whose attention is computed as asked; those without any are left as they are.

  Args:
    graphs: by name, from `nnx.split`.
    shapes: the parameters that belong to them, or their shapes.
    choice: "auto": `attention`, and of many tokens `long_attention`; "xla": `attention` alone;
      "cudnn": `cudnn_attention`.
    platform: as JAX names it, of the devices that compute.
    dtype: that the networks compute in.

  Raises:
    ValueError: another choice, or what `check_cudnn` says.
  """
  if choice not in CHOICES:
    raise ValueError(f"attention must be {', '.join(CHOICES[:-1])} or {CHOICES[-1]}, not "
                     f"{choice!r}")
  if choice == "auto":
    return graphs
  attend = attention if choice == "xla" else cudnn_attention
  result = {}
  for name, graph in graphs.items():
    network = nnx.merge(graph, shapes[name])
    layers = [layer for _, layer in nnx.iter_modules(network) if hasattr(layer, "attend")]
    for layer in layers:
      if choice == "cudnn":
        check_cudnn(platform, dtype, layer.num_heads,
                    layer.proj.kernel.shape[-1] // layer.num_heads)
      layer.attend = attend
    result[name] = nnx.split(network)[0] if layers else graph
  return result
