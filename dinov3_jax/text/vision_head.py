"""The vision head of dino.txt: blocks on a frozen backbone's tokens (paper, section 5.3)."""

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3_jax.models.layers import linear, make_norm
from dinov3_jax.text.stack import make_blocks, run_blocks


class VisionHead(nnx.Module):
  """Pre-norm blocks with SwiGLU and LayerScale, without RoPE, and a LayerNorm.

  An image's feature is CLS and the mean patch, joined, so that half of it is compared with patches.
  Where twice the backbone's width is not the size of the shared space, a linear layer makes it so.
  """

  def __init__(self, *, width: int, embedding: int, num_heads: int, depth: int = 2,
               ffn_ratio: float = 4.0, layerscale: float = 1e-5, drop_path: float = 0.0,
               rngs: nnx.Rngs):
    if embedding % 2:
      raise ValueError(f"the embedding must be even, one half CLS and one the mean patch, not "
                       f"{embedding}")
    self.drop_path = drop_path
    self.blocks = make_blocks(
      depth, width=width, num_heads=num_heads, ffn="swiglu", ffn_ratio=ffn_ratio, ffn_align=64,
      qkv_bias=False, proj_bias=True, ffn_bias=True, mask_k_bias=False, norm="layernorm",
      norm_eps=1e-5, layerscale=layerscale, rngs=rngs)
    self.ln_final = make_norm("layernorm", width, 1e-5, rngs=rngs)
    self.linear_projection = None if embedding == 2 * width else linear(
      width, embedding // 2, False, rngs=rngs)

  def __call__(self, tokens: dict[str, jax.Array], *, key: jax.Array | None = None,
               shards: int = 1, remat: str = "none", layout: dict | None = None
               ) -> dict[str, jax.Array]:
    """What the head makes of a backbone's tokens.

    Args:
      tokens: `cls` [B, D], `storage` [B, R, D] and `patches` [B, N, D], as a backbone returns them;
        a ConvNeXt has no `storage`.
      key: draws stochastic depth; None turns it off.
      shards: data shards of the batch axis.
      remat, layout: of the blocks, see `stack.run_blocks`.

    Returns:
      `cls` [B, E/2], `patches` [B, N, E/2], and `image` [B, E], CLS and the mean patch.
    """
    storage = tokens.get("storage")
    storage = [] if storage is None else [storage]
    x = jnp.concatenate([tokens["cls"][:, None], *storage, tokens["patches"]], axis=1)
    x = run_blocks(self.blocks, x, drop_path=self.drop_path, key=key, shards=shards, remat=remat,
                   layout=layout)
    x = self.ln_final(x)
    if self.linear_projection is not None:
      x = self.linear_projection(x)
    cls, patches = x[:, 0], x[:, -tokens["patches"].shape[1]:]
    return dict(cls=cls, patches=patches,
                image=jnp.concatenate([cls, patches.mean(axis=1)], axis=-1))
