"""The parts of a transformer block."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3_jax.models.adapters import Adapter
from dinov3_jax.models.attention import LONG, attention, long_attention
from dinov3_jax.models.partition import shard_keys
from dinov3_jax.models.products import saveable
from dinov3_jax.models.rope import rotate

# The reference's "truncated" normal cuts at an absolute 2, a hundred deviations out.
init = nnx.initializers.normal(0.02)


def linear(in_features: int, out_features: int, bias: bool, *, rngs: nnx.Rngs) -> nnx.Linear:
  """A dense layer with weights from N(0, 0.02^2) and a bias of zeros."""
  return nnx.Linear(in_features, out_features, use_bias=bias, kernel_init=init, rngs=rngs)


def gelu(x: jax.Array) -> jax.Array:
  """Exact GELU, computed in float32, of x's dtype.

  `jax.nn.gelu` has erfc in place of erf: on a CPU half as fast, for digits of the left tail, which
  are far below what float32 resolves elsewhere.
  """
  y = x.astype(jnp.float32)
  return (0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


def make_norm(kind: str, width: int, eps: float, *, rngs: nnx.Rngs) -> nnx.Module:
  """LayerNorm or RMSNorm ("layernorm" or "rmsnorm"), its statistics in float32."""
  if kind == "layernorm":
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, rngs=rngs)
  if kind == "rmsnorm":
    return nnx.RMSNorm(width, epsilon=eps, rngs=rngs)
  raise ValueError(f"model.norm must be layernorm or rmsnorm, not {kind!r}")


class PatchEmbed(nnx.Module):
  """Cuts an image into patches and projects each: a convolution whose stride is its kernel."""

  def __init__(self, patch_size: int, in_channels: int, width: int, *, rngs: nnx.Rngs):
    shape = (patch_size, patch_size, in_channels, width)
    bound = (patch_size**2 * in_channels) ** -0.5
    uniform = lambda shape: jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
    self.kernel = nnx.Param(uniform(shape))
    self.bias = nnx.Param(uniform((width,)))

  def __call__(self, images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H/p * W/p, D]; rows and columns that fill no patch are left out."""
    p, _, channels, width = self.kernel.shape
    b, h, w = images.shape[0], images.shape[1] // p, images.shape[2] // p
    x = images[:, :h * p, :w * p].reshape(b, h, p, w, p, channels).swapaxes(2, 3)
    x = x.reshape(b, h * w, p * p * channels).astype(self.kernel.dtype)
    return x @ self.kernel[...].reshape(-1, width) + self.bias[...]


class ConvStem(nnx.Module):
  """Patch tokens from overlapping convolutions, which learn faster than one cut into patches.

  A 3 x 3 convolution of stride 2, LayerNorm and GELU for each factor of two in the patch size, and
  a linear projection (Xiao et al., "Early convolutions help transformers see better"). Not in the
  reference.
  """

  def __init__(self, patch_size: int, in_channels: int, width: int, *, rngs: nnx.Rngs):
    stages = patch_size.bit_length() - 1
    if patch_size != 2**stages:
      raise ValueError(f"a conv stem needs a patch size that is a power of two, not {patch_size}")
    widths = [in_channels, *(width >> i for i in reversed(range(stages)))]
    pairs = list(enumerate(itertools.pairwise(widths)))
    self.convs = nnx.Dict({str(i): nnx.Conv(a, b, (3, 3), strides=2, padding=1, rngs=rngs)
                           for i, (a, b) in pairs})
    self.norms = nnx.Dict({str(i): make_norm("layernorm", b, 1e-6, rngs=rngs)
                           for i, (_, b) in pairs})
    self.proj = linear(width, width, True, rngs=rngs)
    self.patch_size = patch_size

  def __call__(self, images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H/p * W/p, D]; rows and columns that fill no patch are left out."""
    p = self.patch_size
    x = images[:, :images.shape[1] // p * p, :images.shape[2] // p * p]
    x = x.astype(self.proj.kernel.dtype)
    for i in self.convs:
      x = gelu(self.norms[i](self.convs[i](x)))
    return self.proj(x.reshape(x.shape[0], -1, x.shape[-1])).astype(x.dtype)


class Attention(nnx.Module):
  """Multi-head self-attention with RoPE on the patch tokens.

  With `mask_k_bias` the bias of the keys, which the softmax ignores anyway, counts as zero. With
  `causal` a token sees those before it and itself.

  Attributes:
    attend: what computes it in place of `attention` and `long_attention`, see `attention.choose`.
      Not where it is causal.
  """

  attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None

  def __init__(self, width: int, num_heads: int, qkv_bias: bool, proj_bias: bool, mask_k_bias: bool,
               adapter_rank: int = 0, causal: bool = False, *, rngs: nnx.Rngs):
    self.num_heads, self.causal = num_heads, causal
    self.mask_k_bias = mask_k_bias and qkv_bias
    self.qkv = nnx.LinearGeneral(width, (3, width), use_bias=qkv_bias, kernel_init=init,
                                 dot_general=jax.lax.dot_general, rngs=rngs)
    self.proj = linear(width, width, proj_bias, rngs=rngs)
    if adapter_rank:
      self.qkv_adapter = Adapter(width, (3, width), adapter_rank, rngs=rngs)
      self.proj_adapter = Adapter(width, (width,), adapter_rank, rngs=rngs)
    self.adapted = adapter_rank > 0

  def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """x [B, T, D], and the sine and cosine tables of its last N tokens, if any -> [B, T, D]."""
    b, t, d = x.shape
    # No flat [D, 3 D] here: it would mix what lies on different devices.
    qkv = self.qkv.dot_general(x, self.qkv.kernel[...], (((2,), (0,)), ((), ())))
    if self.qkv.bias is not None:
      bias = self.qkv.bias[...]
      qkv += bias.at[1].set(0) if self.mask_k_bias else bias
    if self.adapted:
      qkv += self.qkv_adapter(x)
    # Not by indices: their gradient is a sum of padded parts, that of a split joins the parts.
    q, k, v = (a.reshape(b, t, self.num_heads, -1) for a in jnp.split(qkv, 3, axis=2))
    if rope is not None:
      q, k = rotate(q, *rope), rotate(k, *rope)
    if self.causal:
      attend = functools.partial(attention, causal=True)
    else:
      attend = self.attend or (attention if t < LONG else long_attention)
    # Kept in place of the product, which the backward pass does not need then.
    y = attend(*(saveable(a.astype(x.dtype)) for a in (q, k, v))).reshape(b, t, d)
    return self.proj(y) + self.proj_adapter(y) if self.adapted else self.proj(y)


class Mlp(nnx.Module):
  """Linear, exact GELU, linear."""

  def __init__(self, width: int, hidden: int, bias: bool, *, rngs: nnx.Rngs):
    self.fc1 = linear(width, hidden, bias, rngs=rngs)
    self.fc2 = linear(hidden, width, bias, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.fc2(gelu(self.fc1(x)).astype(x.dtype))


class SwiGlu(nnx.Module):
  """w3(silu(w1 x) * w2 x)."""

  def __init__(self, width: int, hidden: int, bias: bool, *, rngs: nnx.Rngs):
    self.w1 = linear(width, hidden, bias, rngs=rngs)
    self.w2 = linear(width, hidden, bias, rngs=rngs)
    self.w3 = linear(hidden, width, bias, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.w3((jax.nn.silu(self.w1(x)) * self.w2(x)).astype(x.dtype))


def hidden_width(kind: str, width: int, ratio: float, align: int) -> int:
  """That of a feed-forward network: `ratio * width` for an "mlp", for "swiglu" two thirds of that,
  rounded up to a multiple of `align`."""
  hidden = int(width * ratio)
  if kind == "mlp":
    return hidden
  if kind == "swiglu":
    return -(-int(hidden * 2 / 3) // align) * align
  raise ValueError(f"model.ffn must be mlp or swiglu, not {kind!r}")


def make_ffn(kind: str, width: int, ratio: float, align: int, bias: bool, *,
             rngs: nnx.Rngs) -> nnx.Module:
  """The feed-forward network, "mlp" or "swiglu", of `hidden_width`."""
  hidden = hidden_width(kind, width, ratio, align)
  return (Mlp if kind == "mlp" else SwiGlu)(width, hidden, bias, rngs=rngs)


class LayerScale(nnx.Module):
  """A learned factor for each channel of a residual branch."""

  def __init__(self, width: int, value: float):
    self.gamma = nnx.Param(jnp.full(width, value, jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    return x * self.gamma[...]


def residual(x: jax.Array, branch: Callable[[jax.Array], jax.Array], rate: float = 0.0,
             key: jax.Array | None = None, shards: int = 1) -> jax.Array:
  """x + branch(x), or its stochastic-depth version, which runs the branch on fewer rows.

  In each of the `shards` equal parts of the batch (b rows each), exactly k = max(int(b (1 - rate)),
  1) rows, drawn without replacement, go through the branch; its output is scaled by b / k. The work
  falls with the rate, and every shape is static.

  Args:
    x: [B, T, D]; `branch` maps [k', T, D] to the same shape.
    rate: share of rows that skip the branch; 0 or a missing `key` runs it on all.
  """
  if key is None or rate == 0:
    return x + branch(x).astype(x.dtype)
  b = x.shape[0] // shards
  keep = max(int(b * (1 - rate)), 1)
  split = x.reshape(shards, b, *x.shape[1:])
  rows = jax.vmap(lambda k: jax.random.permutation(k, b)[:keep])(shard_keys(key, shards))
  unique = dict(unique_indices=True, mode="promise_in_bounds")
  kept = jax.vmap(lambda x, i: x.at[i].get(**unique))(split, rows)
  update = branch(kept.reshape(-1, *x.shape[1:])).reshape(kept.shape) * (b / keep)
  update = update.astype(x.dtype)  # as without dropped rows
  return jax.vmap(lambda x, i, u: x.at[i].add(u, **unique))(split, rows, update).reshape(x.shape)


class Block(nnx.Module):
  """Pre-norm transformer block: attention, then the feed-forward network."""

  def __init__(self, *, width: int, num_heads: int, ffn: str, ffn_ratio: float, ffn_align: int,
               qkv_bias: bool, proj_bias: bool, ffn_bias: bool, mask_k_bias: bool, norm: str,
               norm_eps: float, layerscale: float, adapter_rank: int = 0, causal: bool = False,
               rngs: nnx.Rngs):
    scale = lambda: LayerScale(width, layerscale) if layerscale else None
    self.norm1 = make_norm(norm, width, norm_eps, rngs=rngs)
    self.attn = Attention(width, num_heads, qkv_bias, proj_bias, mask_k_bias, adapter_rank, causal,
                          rngs=rngs)
    self.ls1 = scale()
    self.norm2 = make_norm(norm, width, norm_eps, rngs=rngs)
    self.mlp = make_ffn(ffn, width, ffn_ratio, ffn_align, ffn_bias, rngs=rngs)
    self.ls2 = scale()

  def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array] | None = None, *,
               drop_path: float = 0.0, key: jax.Array | None = None, shards: int = 1) -> jax.Array:
    """x [B, T, D] -> [B, T, D]; `key` draws the rows that stochastic depth keeps."""
    keys = (None, None) if key is None else jax.random.split(key)
    ls1, ls2 = self.ls1 or (lambda x: x), self.ls2 or (lambda x: x)
    x = residual(x, lambda x: ls1(self.attn(self.norm1(x), rope)), drop_path, keys[0], shards)
    return residual(x, lambda x: ls2(self.mlp(self.norm2(x))), drop_path, keys[1], shards)
