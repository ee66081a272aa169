"""How much arithmetic a training step asks for, and how much a chip can do."""

import itertools
import math
from typing import NamedTuple

from dinov3_jax.data.masks import masked_count
from dinov3_jax.models.layers import hidden_width


class Chip(NamedTuple):
  """What a chip can do, from its vendor's data sheet.

  Attributes:
    flops: dense bfloat16 operations a second.
    memory: bytes of high-bandwidth memory.
    devices: as how many devices JAX sees it.
  """

  flops: float
  memory: float
  devices: int = 1


GIB = 2**30

# By `device_kind`.
CHIPS = {
  "TPU v4": Chip(275e12, 32 * GIB),
  "TPU v5 lite": Chip(197e12, 16 * GIB),
  "TPU v5": Chip(459e12, 95 * GIB),
  "TPU v6 lite": Chip(918e12, 32 * GIB),
  "TPU7x": Chip(2307e12, 192 * GIB, devices=2),
  "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * GIB),
  "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * GIB),
  "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * GIB),
  "NVIDIA H200": Chip(989e12, 141e9),
}


class StepFlops(NamedTuple):
  """Floating-point operations of one step, over all devices.

  Attributes:
    full: as if stochastic depth skipped nothing.
    executed: with what it skips left out.
  """

  full: float
  executed: float


def step_flops(config, shards: int, resolution: int = 0) -> StepFlops:
  """The model's matrix products, two operations for a multiplication and its addition.

  Student: forward and twice that backward; teacher and Gram teacher: forward. What
  rematerialisation and chunked losses compute again is not counted.

  Args:
    config: of the run.
    shards: data shards, each of which rounds its number of skipped rows.
    resolution: which entry of the lists of crop sizes.
  """
  model, crops, images = config.model, config.crops, config.train.batch_size
  patches = lambda size: (size // model.patch_size) ** 2
  globals_, locals_, gram = (patches(sizes[resolution]) for sizes in (
    crops.global_sizes, crops.local_sizes, crops.gram_sizes))

  def share(rows):  # of a batch's rows that go through a branch
    rows //= shards
    return max(int(rows * (1 - model.drop_path)), 1) / rows

  student = [(2 * images, globals_), (crops.locals * images, locals_)]
  branches = [n * _blocks(model, patches) for n, patches in student]
  executed = sum(flops * share(n) for flops, (n, _) in zip(branches, student))
  embeds = sum(n * _embed(model, patches) for n, patches in student)

  masked = shards * masked_count(2 * images // shards, globals_, config.masks.probability,
                                 config.masks.ratio)
  dino, ibot = _head(model.width, config.dino), _head(model.width, config.ibot)
  heads = 3 * (images * (2 + crops.locals) * dino + masked * ibot)
  teacher = (2 * images * (_embed(model, globals_) + _blocks(model, globals_) + dino)
             + masked * ibot)
  if gram:
    teacher += 2 * images * (_embed(model, gram) + _blocks(model, gram))
  if config.gram.teacher != "none":
    shared = 1 if config.gram.image_level else 2 * images // shards
    teacher += 4 * 2 * images * 2 * globals_**2 * shared * model.width
  # An image has no gradient, so the embedding's backward pass is one product.
  rest = 2 * embeds + heads + teacher
  return StepFlops(float(3 * sum(branches) + rest), float(3 * executed + rest))


def flops_by_crops(config, shards: int) -> dict[tuple[int, int], StepFlops]:
  """`step_flops` of every resolution, by the sides of global and local crops in a batch."""
  crops, patch = config.crops, config.model.patch_size
  return {(big, small // patch * patch): step_flops(config, shards, i)
          for i, (big, small) in enumerate(zip(crops.global_sizes, crops.local_sizes))}


def _embed(model, patches: int) -> int:
  return 2 * patches * model.patch_size**2 * model.in_channels * model.width


def _blocks(model, patches: int) -> int:
  """Forward through all blocks, for one crop."""
  tokens = patches + 1 + model.storage_tokens
  hidden = hidden_width(model.ffn, model.width, model.ffn_ratio, model.ffn_align)
  matrices = 4 * model.width + (2 if model.ffn == "mlp" else 3) * hidden
  return model.depth * 2 * tokens * model.width * (matrices + 2 * tokens)


def _head(width: int, head) -> int:
  """Forward through a head, logits included, for one row."""
  widths = [width, *[head.hidden] * (head.layers - 1), head.bottleneck, head.prototypes]
  return sum(2 * math.prod(pair) for pair in itertools.pairwise(widths))
