"""How much arithmetic a step of dino.txt asks for; see `costs.flops`."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dinov3_jax.costs.flops import StepFlops, forward_flops
from dinov3_jax.models.variants import stride, width


def step_flops(config, backbone: Mapping[str, Any], shards: int) -> StepFlops:
  """The matrix products of a step, two operations for a multiplication and its addition.

  The frozen backbone: forward, unless its features are cached. Vision head, text tower and
  the similarities of all pairs: forward and twice that backward. What is computed again counts
  once.

  Args:
    config: of the run.
    backbone: settings of the backbone, see `backbone.complete`.
    shards: data shards, each of which rounds its number of skipped rows.
  """
  pairs, head, text = config.train.batch_size, config.vision_head, config.text
  features, patches = width(backbone), (config.images.size // stride(backbone)) ** 2
  storage = backbone.get("storage_tokens", 0)
  blocks = dict(ffn="swiglu", ffn_ratio=head.ffn_ratio, ffn_align=64, width=features,
                depth=head.depth, storage_tokens=storage)
  frozen = 0 if config.features.views else pairs * forward_flops(
    ConfigDict(dict(backbone)), patches)
  of_head = forward_flops(ConfigDict(blocks), patches, embed=False)
  tower = dict(ffn="mlp", ffn_ratio=text.ffn_ratio, ffn_align=1, width=text.width,
               depth=text.depth, storage_tokens=0)
  of_text = forward_flops(ConfigDict(tower), text.context - 1, embed=False)
  of_text += 2 * text.width * config.embedding
  if config.embedding != 2 * features:
    of_text += (patches + 1) * features * config.embedding
  similarities = 2 * pairs**2 * config.embedding
  rest = frozen + 3 * (pairs * of_text + similarities)
  shards *= config.train.micro_batches
  kept = max(int(pairs // shards * (1 - head.drop_path)), 1) * shards
  return StepFlops(float(rest + 3 * pairs * of_head), float(rest + 3 * kept * of_head))
