"""The vision transformer of DINOv3 (section 3.1)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3_jax.models.layers import Block, PatchEmbed, init, make_norm
from dinov3_jax.models.rope import Rope

# What a block may keep for its backward pass; the rest is computed again.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class VisionTransformer(nnx.Module):
  """A ViT with storage (register) tokens and axial RoPE; the tokens run [CLS, storage, patches].

  The blocks' parameters are stacked on a leading axis and scanned, so the program's size does not
  grow with the depth. Arguments are named as in `configs/base.py`; `rope` holds the arguments of
  `Rope` but the head width.
  """

  def __init__(self, *, width: int, depth: int, num_heads: int, patch_size: int = 16,
               in_channels: int = 3, ffn: str = "mlp", ffn_ratio: float = 4.0, ffn_align: int = 8,
               qkv_bias: bool = True, proj_bias: bool = True, ffn_bias: bool = True,
               mask_k_bias: bool = False, norm: str = "layernorm", norm_eps: float = 1e-6,
               layerscale: float = 1e-5, drop_path: float = 0.0, storage_tokens: int = 0,
               untie_cls_and_patch_norms: bool = False,
               untie_global_and_local_cls_norm: bool = False, rope: dict | None = None,
               rngs: nnx.Rngs):
    if width % num_heads:
      raise ValueError(f"model.width {width} is not a multiple of model.num_heads {num_heads}")
    self.patch_size = patch_size
    self.depth = depth
    self.drop_path = drop_path
    self.rope = Rope(width // num_heads, **(rope or {}))

    token = lambda shape: nnx.Param(init(rngs.params(), shape))
    self.cls_token = token((1, 1, width))
    self.storage_tokens = token((1, storage_tokens, width)) if storage_tokens else None
    self.mask_token = nnx.Param(jnp.zeros((1, width), jnp.float32))
    self.patch_embed = PatchEmbed(patch_size, in_channels, width, rngs=rngs)

    @nnx.split_rngs(splits=depth)
    @nnx.vmap
    def make_blocks(rngs):
      return Block(width=width, num_heads=num_heads, ffn=ffn, ffn_ratio=ffn_ratio,
                   ffn_align=ffn_align, qkv_bias=qkv_bias, proj_bias=proj_bias, ffn_bias=ffn_bias,
                   mask_k_bias=mask_k_bias, norm=norm, norm_eps=norm_eps, layerscale=layerscale,
                   rngs=rngs)

    self.blocks = make_blocks(rngs)
    make = lambda: make_norm(norm, width, norm_eps, rngs=rngs)
    self.norm = make()
    self.cls_norm = make() if untie_cls_and_patch_norms else None
    self.local_cls_norm = make() if untie_global_and_local_cls_norm else None

  def __call__(self, images: jax.Array, masks: jax.Array | None = None) -> dict[str, jax.Array]:
    """Normed tokens of preprocessed images.

    Args:
      images: [B, H, W, C], H and W multiples of the patch size.
      masks: [B, N] bool; True replaces a patch by the mask token.

    Returns:
      `cls` [B, D], `storage` [B, R, D] and `patches` [B, N, D], N patches in rows.
    """
    self._check_size(images)
    x, = self._blocks([self._embed(images, masks)], [images.shape[1:3]])
    return self._split(self._final_norm(x))

  def features(self, images: jax.Array, layers: int | Sequence[int] = 1, *, norm: bool = True,
               reshape: bool = False) -> list[dict[str, jax.Array]]:
    """Tokens after chosen blocks, in the blocks' order.

    For dense tasks take four evenly spaced blocks, which the paper does; for ViT-L's 24 the
    reference takes [4, 11, 17, 23]. The final norm belongs on every layer: the features are read
    through it downstream, and without it a few channels dominate.

    Args:
      images: [B, H, W, C], H and W multiples of the patch size.
      layers: how many of the last blocks, or the indices of blocks (negative from the end).
      norm: apply the final norm.
      reshape: patches as [B, H/p, W/p, D] instead of [B, N, D].

    Returns:
      A dict for each block, as from `__call__`.
    """
    self._check_size(images)
    if isinstance(layers, int):
      chosen = range(self.depth - layers, self.depth)
    else:
      chosen = sorted({i + self.depth if i < 0 else i for i in layers})
    if not chosen or chosen[0] < 0 or chosen[-1] >= self.depth:
      raise ValueError(f"layers {layers} do not fit a model of {self.depth} blocks")
    _, outputs = self._blocks([self._embed(images)], [images.shape[1:3]], collect=tuple(chosen))
    grid = [n // self.patch_size for n in images.shape[1:3]]
    result = []
    for x in outputs:
      tokens = self._split(self._final_norm(x) if norm else x)
      if reshape:
        tokens["patches"] = tokens["patches"].reshape(x.shape[0], *grid, -1)
      result.append(tokens)
    return result

  def forward_crops(self, global_crops: jax.Array, local_crops: jax.Array | None = None,
                    masks: jax.Array | None = None, *, key: jax.Array | None = None,
                    shards: int = 1, remat: str = "none") -> tuple[dict, dict | None]:
    """The training forward: all crops go through each block together.

    Args:
      global_crops: [B_g, H, W, C]; their patches are masked by `masks` [B_g, N] if given.
      local_crops: [B_l, h, w, C], or None.
      key: draws stochastic depth and the augmentation of RoPE; None turns both off.
      shards: data shards of the batch axis, each with its own rows for stochastic depth.
      remat: which intermediate values are recomputed in the backward pass; a key of `REMAT`.

    Returns:
      The dicts of `__call__` for global and local crops (None without). Local crops' CLS and
      storage tokens use their own norm where the model has one.
    """
    crops = [global_crops] if local_crops is None else [global_crops, local_crops]
    tokens = [self._embed(c, m) for c, m in zip(crops, [masks, None])]
    sizes = [crop.shape[1:3] for crop in crops]
    tokens = self._blocks(tokens, sizes, key=key, shards=shards, remat=remat)
    outputs = [self._split(self._final_norm(x, norm))
               for x, norm in zip(tokens, [self.cls_norm, self.local_cls_norm or self.cls_norm])]
    return outputs[0], outputs[1] if len(outputs) > 1 else None

  def _check_size(self, images: jax.Array):
    height, width = images.shape[1:3]
    if height % self.patch_size or width % self.patch_size:
      raise ValueError(f"images of {height}x{width} are not a whole number of patches of "
                       f"{self.patch_size}: resize or pad them to a multiple")

  def _embed(self, images: jax.Array, masks: jax.Array | None = None) -> jax.Array:
    """The sequence [B, 1 + R + N, D] that enters the blocks."""
    x = self.patch_embed(images)
    if masks is not None:
      x = jnp.where(masks[..., None], self.mask_token[...].astype(x.dtype), x)
    prefix = [self.cls_token[...]]
    if self.storage_tokens is not None:
      prefix.append(self.storage_tokens[...])
    prefix = [jnp.broadcast_to(t.astype(x.dtype), (x.shape[0], *t.shape[1:])) for t in prefix]
    return jnp.concatenate([*prefix, x], axis=1)

  def _blocks(self, crops, sizes, *, key=None, shards=1, remat="none", collect=None):
    """Runs every block over every crop kind; `collect` also keeps the output of those blocks."""
    grids = [[side // self.patch_size for side in size] for size in sizes]
    graphdef, params = nnx.split(self.blocks)
    if remat not in REMAT:
      raise ValueError(f"train.remat must be one of {', '.join(REMAT)}, not {remat!r}")
    still = [self.rope.tables(*grid) for grid in grids] if key is None else None

    def body(crops, layer):
      params, key = layer
      block = nnx.merge(graphdef, params)
      if key is None:
        crops = [block(x, rope) for x, rope in zip(crops, still)]
      else:
        keys = jax.random.split(key, (len(crops), 2))
        crops = [block(x, self.rope.tables(*grid, key=k[0]), drop_path=self.drop_path, key=k[1],
                       shards=shards) for x, grid, k in zip(crops, grids, keys)]
      return crops, None

    if remat != "none":
      body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)
    keys = None if key is None else jax.random.split(key, self.depth)
    if collect is None:
      return jax.lax.scan(body, crops, (params, keys))[0]

    def collecting_body(carry, layer):
      crops, kept = carry
      params, index = layer
      crops, _ = body(crops, (params, None))
      slots = [jnp.where(index == block, crops[0], slot) for block, slot in zip(collect, kept)]
      return (crops, slots), None

    kept = [jnp.zeros_like(crops[0])] * len(collect)
    return jax.lax.scan(collecting_body, (crops, kept), (params, jnp.arange(self.depth)))[0]

  def _prefix(self) -> int:
    return 1 + (0 if self.storage_tokens is None else self.storage_tokens.shape[1])

  def _final_norm(self, x: jax.Array, cls_norm: nnx.Module | None = None) -> jax.Array:
    """Normed tokens; CLS and storage tokens go through `cls_norm` where there is one."""
    cls_norm = cls_norm or self.cls_norm
    if cls_norm is None:
      return self.norm(x)
    n = self._prefix()
    return jnp.concatenate([cls_norm(x[:, :n]), self.norm(x[:, n:])], axis=1)

  def _split(self, x: jax.Array) -> dict[str, jax.Array]:
    n = self._prefix()
    return {"cls": x[:, 0], "storage": x[:, 1:n], "patches": x[:, n:]}
