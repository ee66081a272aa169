"""How much arithmetic a training step asks for, and how much a chip can do."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from dinov3_jax.data.masks import masked_count
from dinov3_jax.models.layers import hidden_width
from dinov3_jax.models.variants import stride, width


class Chip(NamedTuple):
  """What a chip can do.

  Attributes:
    flops: dense bfloat16 operations a second, from its vendor's data sheet.
    memory: bytes of high-bandwidth memory; of a TPU, what libtpu lets a program have.
    devices: as how many devices JAX sees it.
    memory_bandwidth: bytes a second that its memory moves; 0 where nothing is estimated from it.
    link: bytes a second that one of its links to other chips carries in one direction; 0 likewise.
    ring: a side of the torus closes to a ring if it has a multiple of so many chips.
    inside: bytes a second that one of its devices sends the other in one direction.
  """

  flops: float
  memory: float
  devices: int = 1
  memory_bandwidth: float = 0.0
  link: float = 0.0
  ring: int = 4
  inside: float = 0.0


GIB = 2**30

# By `device_kind`. Bandwidths of TPUs are those of docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e
# and tpu7x: of a chip's links together 2,400 Gbit/s in one direction on v4, and in both 400, 1,200,
# 800 and 1,200 GB/s on the others, over six links or, on v5e and v6e, four. The halves of a TPU7x
# chip are joined by what carries six times as much as a link.
CHIPS = {
  "TPU v4": Chip(275e12, 30.75 * GIB, memory_bandwidth=1200e9, link=50e9),
  "TPU v5 lite": Chip(197e12, 15.75 * GIB, memory_bandwidth=819e9, link=50e9, ring=16),
  "TPU v5": Chip(459e12, 95.74 * GIB, memory_bandwidth=2765e9, link=100e9),
  "TPU v6 lite": Chip(918e12, 31.25 * GIB, memory_bandwidth=1638e9, link=100e9, ring=16),
  "TPU7x": Chip(2307e12, 189.5 * GIB, devices=2, memory_bandwidth=7380e9, link=100e9,
                inside=600e9),
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


class Crops(NamedTuple):
  """Crops of one size that go through a backbone in a step, over all devices.

  Attributes:
    count: of them.
    kept: those that stochastic depth lets through a branch.
    patches: of each.
  """

  count: int
  kept: int
  patches: int


def crops_of_step(config, shards: int, resolution: int = 0) -> tuple[list[Crops], list[Crops]]:
  """What goes through the student, and what through the teachers; arguments as `step_flops`."""
  crops, images = config.crops, config.train.batch_size
  shards *= config.train.micro_batches  # of each of which stochastic depth rounds the rows
  big, small, gram = ((sizes[resolution] // stride(config.model)) ** 2 for sizes in (
    crops.global_sizes, crops.local_sizes, crops.gram_sizes))
  skips = "depths" not in config.model  # a ConvNeXt computes what it then leaves out

  def trained(count, patches):
    kept = max(int(count // shards * (1 - config.model.get("drop_path", 0.0))), 1) * shards
    return Crops(count, kept if skips else count, patches)

  student = [trained(2 * images, big), trained(crops.locals * images, small)]
  seen = [big]
  if config.gram.teacher == "own":
    seen.append(gram or big)
  return student, [Crops(2 * images, 2 * images, patches) for patches in seen]


def step_flops(config, shards: int, resolution: int = 0, teacher=None) -> StepFlops:
  """The model's matrix products, two operations for a multiplication and its addition.

  Student: forward and twice that backward, once where only low-rank adapters learn, whose own
  products are not counted, and nothing where the backbone is frozen to the end; teacher and Gram
  teacher: forward. What
  rematerialisation and chunked losses compute again is not counted, nor are a ConvNeXt's depthwise
  convolutions, nor what somebody else's network does.

  Args:
    config: of the run.
    shards: data shards, each of which rounds its number of skipped rows.
    resolution: which entry of the lists of crop sizes.
    teacher: settings of a frozen teacher, of which the step then computes the logits alone;
      `targets_flops` is the rest.
  """
  model, images = config.model, config.train.batch_size
  student, teachers = crops_of_step(config, shards, resolution)
  shards *= config.train.micro_batches
  blocks = lambda crops: _blocks(model, crops.patches)
  embed = lambda crops: crops.count * _embed(model, crops.patches)

  patches, features = student[0].patches, width(model)
  masked = shards * masked_count(2 * images // shards, patches, config.masks.probability,
                                 config.masks.ratio)
  dino, ibot = _head(features, config.dino), _head(features, config.ibot)
  rest = 3 * (images * (2 + config.crops.locals) * dino + masked * ibot)
  if teacher is None:
    rest += 2 * images * dino + masked * ibot
  else:
    teachers = []
    rest += 2 * images * _logits(teacher.dino) + masked * _logits(teacher.ibot)
  passes = 1 + _backward(config)
  # An image has no gradient, so the embedding's backward pass is one product.
  rest += (2 if passes == 3 else 1) * sum(map(embed, student)) + sum(map(embed, teachers))
  rest += sum(crops.count * blocks(crops) for crops in teachers)
  if config.gram.teacher != "none":
    shared = 1 if config.gram.image_level else 2 * images // shards
    rest += 4 * 2 * images * 2 * patches**2 * shared * features
  full = passes * sum(crops.count * blocks(crops) for crops in student)
  executed = passes * sum(crops.kept * blocks(crops) for crops in student)
  return StepFlops(float(full + rest), float(executed + rest))


def targets_flops(config, teacher, resolution: int = 0) -> float:
  """What a frozen teacher computes for the targets of a step, its heads' last layers left out.

  Args:
    config: of a student's run.
    teacher: settings with the sections `model`, `dino` and `ibot`.
    resolution: which entry of the lists of crop sizes.
  """
  patches = (config.crops.global_sizes[resolution] // stride(config.model)) ** 2
  features = width(teacher.model)
  dino, ibot = (_head(features, head) - _logits(head) for head in (teacher.dino, teacher.ibot))
  backbone = _embed(teacher.model, patches) + _blocks(teacher.model, patches)
  return float(2 * config.train.batch_size * (backbone + dino + patches * ibot))


def crop_sides(batch) -> tuple[int, int, int]:
  """The sides of a batch's global, local and Gram crops, in pixels; 0 for those that it lacks."""
  return tuple(batch[name].shape[2] if name in batch else 0
               for name in ("global_crops", "local_crops", "gram_crops"))


def flops_by_crops(configs: Sequence, shards: int, teacher=None
                   ) -> dict[tuple[int, int, int], StepFlops]:
  """What is computed in a step at every resolution, by the `crop_sides` of its batch.

  Args:
    configs: of the runs that take a step each on the same batch.
    shards: data shards.
    teacher: settings of the frozen teacher of all of them, if there is one.
  """
  crops, patch = configs[0].crops, stride(configs[0].model)
  result = {}
  for i, sides in enumerate(zip(crops.global_sizes, crops.local_sizes, crops.gram_sizes)):
    steps = [step_flops(config, shards, i, teacher) for config in configs]
    shared = targets_flops(configs[0], teacher, i) if teacher is not None else 0.0
    result[tuple(size // patch * patch for size in sides)] = StepFlops(
      sum(step.full for step in steps) + shared, sum(step.executed for step in steps) + shared)
  return result


def _backward(config) -> int:
  """The cost of the backbone's backward pass, in forward passes."""
  if config.optim.freeze_backbone_steps < 0:
    return 0
  return 1 if config.model.get("adapter_rank") else 2


def forward_flops(model, patches: int, embed: bool = True) -> int:
  """Forward through a backbone, for one image; or through its blocks alone.

  Args:
    model: its settings.
    patches: of the image.
    embed: whether the patches are embedded, too.
  """
  return _blocks(model, patches) + (_embed(model, patches) if embed else 0)


def _embed(model, patches: int) -> int:
  if "callable" in model:
    return 0
  if "depths" in model:  # the first of four grids, in patches of 4 pixels
    return 2 * 64 * patches * 4**2 * model.in_channels * model.dims[0]
  return 2 * patches * model.patch_size**2 * model.in_channels * model.width


def _blocks(model, patches: int) -> int:
  """Forward through all blocks, for one crop."""
  if "callable" in model:
    return 0
  if "depths" in model:
    return _stages(model, patches)
  tokens = patches + 1 + model.storage_tokens
  hidden = hidden_width(model.ffn, model.width, model.ffn_ratio, model.ffn_align)
  matrices = 4 * model.width + (2 if model.ffn == "mlp" else 3) * hidden
  return model.depth * 2 * tokens * model.width * (matrices + 2 * tokens)


def _stages(model, patches: int) -> int:
  """Forward through a ConvNeXt after its stem; a stage halves the sides of the one before."""
  total, before = 0, None
  for i, (depth, features) in enumerate(zip(model.depths, model.dims)):
    places = patches * (8 >> i) ** 2
    total += depth * places * 2 * 2 * 4 * features**2
    total += places * 2 * 4 * before * features if before else 0
    before = features
  return total


def _logits(head) -> int:
  """A head's last layer, for one row."""
  return 2 * head.bottleneck * head.prototypes


def _head(features: int, head) -> int:
  """Forward through a head, logits included, for one row."""
  widths = [features, *[head.hidden] * (head.layers - 1), head.bottleneck, head.prototypes]
  return sum(2 * math.prod(pair) for pair in itertools.pairwise(widths))
