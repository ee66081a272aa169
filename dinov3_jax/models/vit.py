"""The vision transformer of DINOv3 (section 3.1)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from dinov3_jax.models import partition, prefetch
from dinov3_jax.models.layers import Block, ConvStem, PatchEmbed, init, make_norm
from dinov3_jax.models.products import inference_dot, products_saveable
from dinov3_jax.models.rope import Rope

# What a block may keep for its backward pass; the rest is computed again.
REMAT = {
    "none": None,
    "dots": products_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[], names_which_can_be_offloaded=["block"], offload_src="device",
      offload_dst="pinned_host"),
}


class VisionTransformer(nnx.Module):
  """A ViT with storage (register) tokens and axial RoPE; the tokens run [CLS, storage, patches].

  The blocks' parameters are stacked on a leading axis and scanned, so the program's size does not
  grow with the depth. Arguments are named as in `configs/base.py`; `rope` holds the arguments of
  `Rope` but the head width.
  """

  def __init__(self, *, width: int, depth: int, num_heads: int, patch_size: int = 16,
               stem: str = "patch", in_channels: int = 3, ffn: str = "mlp", ffn_ratio: float = 4.0,
               ffn_align: int = 8, qkv_bias: bool = True, proj_bias: bool = True,
               ffn_bias: bool = True, mask_k_bias: bool = False, norm: str = "layernorm",
               norm_eps: float = 1e-6, layerscale: float = 1e-5, drop_path: float = 0.0,
               storage_tokens: int = 0, untie_cls_and_patch_norms: bool = False,
               untie_global_and_local_cls_norm: bool = False, adapter_rank: int = 0,
               rope: dict | None = None, rngs: nnx.Rngs):
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
    stems = {"patch": PatchEmbed, "conv": ConvStem}
    if stem not in stems:
      raise ValueError(f"model.stem must be patch or conv, not {stem!r}")
    self.patch_embed = stems[stem](patch_size, in_channels, width, rngs=rngs)

    @nnx.split_rngs(splits=depth)
    @nnx.vmap
    def make_blocks(rngs):
      return Block(width=width, num_heads=num_heads, ffn=ffn, ffn_ratio=ffn_ratio,
                   ffn_align=ffn_align, qkv_bias=qkv_bias, proj_bias=proj_bias, ffn_bias=ffn_bias,
                   mask_k_bias=mask_k_bias, norm=norm, norm_eps=norm_eps, layerscale=layerscale,
                   adapter_rank=adapter_rank, rngs=rngs)

    self.blocks = make_blocks(rngs)
    make = lambda: make_norm(norm, width, norm_eps, rngs=rngs)
    self.norm = make()
    self.cls_norm = make() if untie_cls_and_patch_norms else None
    self.local_cls_norm = make() if untie_global_and_local_cls_norm else None

  def __call__(self, images: jax.Array, masks: jax.Array | None = None, *, pad: bool = False
               ) -> dict[str, jax.Array]:
    """Normed tokens of preprocessed images.

    It is compiled: the first call with images of a new shape takes a while, the others do not. This
    holds for `features`, too.

    Args:
      images: float [B, H, W, C], H and W multiples of the patch size p, square or not.
      masks: [B, N] bool; True replaces a patch by the mask token.
      pad: images of other sizes are no error: zeros, which are the mean colour, fill the patches
        that the right and the lower edge cut. N is then ceil(H/p) * ceil(W/p).

    Returns:
      `cls` [B, D], `storage` [B, R, D] and `patches` [B, N, D], N patches in rows.

    Raises:
      ValueError: images of another size, shape or dtype, such as uint8.
    """
    return _tokens(self, self._checked(images, pad), masks)

  def features(self, images: jax.Array, layers: int | Sequence[int] = 1, *, norm: bool = True,
               reshape: bool = False, pad: bool = False) -> list[dict[str, jax.Array]]:
    """Tokens after chosen blocks, in the blocks' order.

    Which to take, with the final norm on each of them:

    - retrieval, k-NN, classification, matching, segmentation by a linear layer: the last, `1`.
      A linear classifier does better with `cls` and the mean of `patches`, joined.
    - a head that learns from several depths (depth, detection, segmentation by a larger head): four
      evenly spaced. The paper's are [9, 19, 29, 39] of the 7B's 40 and [4, 11, 17, 23] of ViT-L's
      24; `[depth * i // 4 - 1 for i in (1, 2, 3, 4)]` of others: [2, 5, 8, 11] of ViT-S and B.
      The published canopy height model, on ViT-L, is the exception with [5, 11, 17, 23].

    Without the norm a few channels dominate: leave it out only for a head that was trained so.

    Args:
      images: float [B, H, W, C], H and W multiples of the patch size p, square or not.
      layers: how many of the last blocks, or the indices of blocks (negative from the end). Blocks
        after the last of them are not computed.
      norm: apply the final norm.
      reshape: patches as [B, H/p, W/p, D] instead of [B, N, D].
      pad: as in `__call__`; the grid has then ceil(H/p) rows and ceil(W/p) columns.

    Returns:
      A dict for each block, as from `__call__`.

    Raises:
      ValueError: blocks that the model does not have, and as `__call__`.
    """
    if isinstance(layers, int):
      chosen = range(self.depth - layers, self.depth)
    else:
      chosen = sorted({i + self.depth if i < 0 else i for i in layers})
    if not chosen or chosen[0] < 0 or chosen[-1] >= self.depth:
      raise ValueError(f"layers {layers} do not fit a model of {self.depth} blocks")
    return _features(self, self._checked(images, pad), tuple(chosen), norm, reshape)

  def forward_crops(self, global_crops: jax.Array, local_crops: jax.Array | None = None,
                    masks: jax.Array | None = None, *, key: jax.Array | None = None,
                    shards: int = 1, remat: str = "none", layout: dict | None = None
                    ) -> tuple[dict, dict | None]:
    """The training forward: all crops go through each block together.

    Args:
      global_crops: [B_g, H, W, C]; their patches are masked by `masks` [B_g, N] if given.
      local_crops: [B_l, h, w, C], or None.
      key: draws stochastic depth and the augmentation of RoPE; None turns both off.
      shards: data shards of the batch axis, each with its own rows for stochastic depth.
      remat: which intermediate values are recomputed in the backward pass; a key of `REMAT`.
      layout: how the stacked blocks' parameters are spread out, see `partition.whole`.

    Returns:
      The dicts of `__call__` for global and local crops (None without). Local crops' CLS and
      storage tokens use their own norm where the model has one.
    """
    crops = [global_crops] if local_crops is None else [global_crops, local_crops]
    tokens = [self._embed(c, m) for c, m in zip(crops, [masks, None])]
    sizes = [crop.shape[1:3] for crop in crops]
    tokens = self._blocks(tokens, sizes, key=key, shards=shards, remat=remat, layout=layout)
    outputs = [self._split(self._final_norm(x, norm))
               for x, norm in zip(tokens, [self.cls_norm, self.local_cls_norm or self.cls_norm])]
    return outputs[0], outputs[1] if len(outputs) > 1 else None

  def _checked(self, images: jax.Array, pad: bool) -> jax.Array:
    """Images that are fit for the network, or a ValueError."""
    check_images(images)
    p = self.patch_size
    height, width = images.shape[1:3]
    if pad:
      return jnp.pad(images, ((0, 0), (0, -height % p), (0, -width % p), (0, 0)))
    if height % p or width % p:
      raise ValueError(f"images of {height}x{width} are not a whole number of patches of {p}: "
                       "resize them to a multiple, or pass pad=True")
    return images

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

  def _blocks(self, crops, sizes, *, key=None, shards=1, remat="none", layout=None):
    """Runs every block over every crop kind."""
    grids = [[side // self.patch_size for side in size] for size in sizes]
    graphdef, params = nnx.split(self.blocks)
    params = nnx.to_pure_dict(params)
    if remat not in REMAT:
      raise ValueError(f"train.remat must be one of {', '.join(REMAT)}, not {remat!r}")
    layout = layout and jax.tree.map(lambda spec: PartitionSpec(*spec[1:]), layout)
    if key is None:
      still, keys, drawn = [self.rope.tables(*grid) for grid in grids], None, None
    else:
      # Tables of all blocks are computed before the scan. In its body a compiler would fuse sine
      # and cosine into the rotation and compute them for every image and head.
      keys = jax.vmap(lambda key: jax.random.split(key, (len(crops), 2)))(
          jax.random.split(key, self.depth))
      drawn = [jax.vmap(lambda key, grid=grid: self.rope.tables(*grid, key=key))(keys[:, i, 0])
               for i, grid in enumerate(grids)]
      keys = keys[:, :, 1]

    def block(crops, params, randomness):
      keys, drawn = randomness
      crops = [checkpoint_name(x, "block") for x in crops]
      block = nnx.merge(graphdef, params)
      if keys is None:
        return [block(x, rope) for x, rope in zip(crops, still)]
      return [block(x, rope, drop_path=self.drop_path, key=key, shards=shards)
              for x, rope, key in zip(crops, drawn, keys)]

    dtype = crops[0].dtype
    if layout and prefetch.begins_with_a_cut_matrix(layout):
      return prefetch.scan(block, crops, params, (keys, drawn), layout=layout, dtype=dtype,
                           policy=REMAT[remat], recomputed=remat in ("full", "offload"))

    def body(crops, layer):
      params, *randomness = layer
      return block(crops, partition.whole(params, layout, dtype), randomness), None

    if remat != "none":
      body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)
    return jax.lax.scan(body, crops, (params, keys, drawn))[0]

  def _infer(self, images, masks=None, chosen=()) -> tuple[jax.Array, jax.Array]:
    """The tokens after the last block, or the last chosen one, and after each of the chosen."""
    x = self._embed(images, masks)
    rope = self.rope.tables(*(side // self.patch_size for side in images.shape[1:3]))
    graphdef, params = nnx.split(self.blocks)
    params = nnx.to_pure_dict(params)
    depth = chosen[-1] + 1 if chosen else self.depth

    def body(carry, layer):
      x, kept = carry
      params, slot = layer
      block = nnx.merge(graphdef, partition.whole(params, None, x.dtype))
      block.set_attributes(dot_general=inference_dot)
      x = block(x, rope)
      return (x, kept.at[slot].set(x) if chosen else kept), None

    # Every block writes where the next chosen one will, which comes last and stays.
    slots = np.searchsorted(chosen, np.arange(depth))
    layers = jax.tree.map(lambda p: p[:depth], params), slots
    return jax.lax.scan(body, (x, jnp.zeros((len(chosen), *x.shape), x.dtype)), layers)[0]

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


def check_images(images: jax.Array):
  """Raises a ValueError for what is no batch of preprocessed images, float [B, H, W, C]."""
  if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError("images must be float [B, H, W, C], as `dinov3_jax.preprocess` makes them, "
                     f"not {images.dtype} {list(images.shape)}")


@jax.jit
def _tokens(model: VisionTransformer, images, masks):
  return model._split(model._final_norm(model._infer(images, masks)[0]))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _features(model: VisionTransformer, images, chosen, norm, reshape):
  grid = [side // model.patch_size for side in images.shape[1:3]]
  result = []
  for x in model._infer(images, chosen=chosen)[1]:
    tokens = model._split(model._final_norm(x) if norm else x)
    if reshape:
      tokens["patches"] = tokens["patches"].reshape(len(x), *grid, -1)
    result.append(tokens)
  return result
