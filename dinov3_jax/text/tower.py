"""The text tower of dino.txt: a causal transformer over a caption's ids (paper, section 5.3)."""

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3_jax.models.layers import make_norm
from dinov3_jax.text.stack import make_blocks, run_blocks

STD_OF_LAYERS = 0.02  # with which blocks are born


class TextTower(nnx.Module):
  """Token and position embeddings, causal pre-norm blocks with exact GELU, and a LayerNorm.

  It is initialised as CLIP's: N(0, 0.02^2) for tokens, N(0, 0.01^2) for positions; in a block of
  width D, of L, standard deviations of D^-0.5 for queries, keys and values, D^-0.5 (2 L)^-0.5 for
  what is added to the residual stream, and (2 D)^-0.5 between.
  """

  def __init__(self, *, vocabulary: int, context: int, width: int, depth: int, num_heads: int,
               ffn_ratio: float = 4.0, rngs: nnx.Rngs):
    if width % num_heads:
      raise ValueError(f"text.width {width} is not a multiple of text.num_heads {num_heads}")
    normal = lambda std, *shape: nnx.Param(std * jax.random.normal(rngs.params(), shape))
    self.token_embedding = normal(0.02, vocabulary, width)
    self.positional_embedding = normal(0.01, context, width)
    self.blocks = make_blocks(
      depth, width=width, num_heads=num_heads, ffn="mlp", ffn_ratio=ffn_ratio, ffn_align=1,
      qkv_bias=False, proj_bias=True, ffn_bias=True, mask_k_bias=False, norm="layernorm",
      norm_eps=1e-5, layerscale=0.0, causal=True, rngs=rngs)
    added = (2 * depth * width) ** -0.5
    for layer, std in ((self.blocks.attn.qkv, width**-0.5), (self.blocks.attn.proj, added),
                       (self.blocks.mlp.fc1, (2 * width) ** -0.5), (self.blocks.mlp.fc2, added)):
      layer.kernel[...] *= std / STD_OF_LAYERS
    self.ln_final = make_norm("layernorm", width, 1e-5, rngs=rngs)

  def __call__(self, ids: jax.Array, *, remat: str = "none", layout: dict | None = None
               ) -> jax.Array:
    """The normed tokens of captions.

    Args:
      ids: int32 [B, T], T at most the context.
      remat, layout: of the blocks, see `stack.run_blocks`.

    Returns:
      [B, T, D].

    Raises:
      ValueError: rows that are longer than the context.
    """
    length, context = ids.shape[1], self.positional_embedding.shape[0]
    if length > context:
      raise ValueError(f"captions of {length} ids are longer than the text tower's {context}")
    x = self.token_embedding[...][ids] + self.positional_embedding[...][:length]
    return self.ln_final(run_blocks(self.blocks, x, remat=remat, layout=layout))


class TextHead(nnx.Module):
  """The linear layer, without bias, from a caption's token to the space shared with images."""

  def __init__(self, width: int, embedding: int, *, rngs: nnx.Rngs):
    self.linear_projection = nnx.Linear(
      width, embedding, use_bias=False, kernel_init=nnx.initializers.normal(width**-0.5),
      rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., E]."""
    return self.linear_projection(x)


def last_token(tokens: jax.Array, ids: jax.Array) -> jax.Array:
  """Of each caption the token at its greatest id, which is its end: [B, T, D] -> [B, D]."""
  return jnp.take_along_axis(tokens, jnp.argmax(ids, axis=1)[:, None, None], axis=1)[:, 0]
