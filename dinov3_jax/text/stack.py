"""Equal transformer blocks, their parameters stacked and scanned."""

import jax
from flax import nnx
from jax.sharding import PartitionSpec as P

from dinov3_jax.models import partition
from dinov3_jax.models.layers import Block
from dinov3_jax.models.vit import REMAT


def make_blocks(depth: int, *, rngs: nnx.Rngs, **settings) -> Block:
  """`depth` blocks in one, each parameter with a leading axis; `settings` are those of `Block`."""

  @nnx.split_rngs(splits=depth)
  @nnx.vmap
  def make(rngs):
    return Block(**settings, rngs=rngs)

  return make(rngs)


def run_blocks(blocks: Block, x: jax.Array, *, drop_path: float = 0.0,
               key: jax.Array | None = None, shards: int = 1, remat: str = "none",
               layout: dict | None = None) -> jax.Array:
  """Tokens [B, T, D] through all blocks, one after the other, without RoPE.

  Args:
    blocks: from `make_blocks`.
    x: the tokens.
    drop_path, key, shards: see `layers.residual`; without a key nothing is skipped.
    remat: a key of `vit.REMAT`.
    layout: how the stacked parameters are spread out, see `partition.whole`.

  Raises:
    ValueError: an unknown `remat`.
  """
  if remat not in REMAT:
    raise ValueError(f"train.remat must be one of {', '.join(REMAT)}, not {remat!r}")
  graph, params = nnx.split(blocks)
  params = nnx.to_pure_dict(params)
  layout = layout and jax.tree.map(lambda spec: P(*spec[1:]), layout)
  depth = len(jax.tree.leaves(params)[0])

  def body(x, layer):
    params, key = layer
    x = jax.ad_checkpoint.checkpoint_name(x, "block")
    block = nnx.merge(graph, partition.whole(params, layout, x.dtype))
    return block(x, drop_path=drop_path, key=key, shards=shards), None

  if remat != "none":
    body = jax.checkpoint(body, policy=REMAT[remat], prevent_cse=False)
  keys = None if key is None else jax.random.split(key, depth)
  return jax.lax.scan(body, x, (params, keys))[0]
