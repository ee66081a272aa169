"""What a compiled program sends between devices, and the least it would have to."""

import collections
import itertools
import math
from typing import NamedTuple

import jax
import numpy as np

from dinov3_jax.costs import hlo
from dinov3_jax.costs.flops import crops_of_step
from dinov3_jax.costs.stages import find_stages
from dinov3_jax.models.partition import axes_of

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


class Collective(NamedTuple):
  """A collective operation of a program.

  Attributes:
    kind: one of `KINDS`.
    operands: their types, as HLO writes them.
    group: how many devices take part.
    times: how often it runs in one run of the program.
    bytes: what a device sends in all these times, if data goes round a ring.
    source: the operation in the traced program that it comes from.
  """

  kind: str
  operands: tuple[str, ...]
  group: int
  times: int
  bytes: float
  source: str


def collectives(text: str, devices: int) -> list[Collective]:
  """The collectives of a compiled program; those in loops count for every round.

  A TPU's compiler writes one that goes on beside other work several times: in the fusion that
  starts it, in those that it goes on beside, and in the one that ends it. It counts once (see
  `stages`).

  Args:
    text: `compiled.as_text()`.
    devices: of the program.
  """
  computations, entry = hlo.parse(text)
  types = {name: {i.name: i.type for i in body} for name, body in computations.items()}
  fused = {name for body in computations.values() for i in body if i.opcode == "fusion"
           for name, _ in hlo.inside(i, computations)}
  found = []

  def add(i: hlo.Instruction, name: str, times: int):
    kind = i.opcode.removesuffix("-start")
    operands = tuple(types[name][x] for x in i.operands if x in types[name])
    group = len(hlo.group(i, devices))
    size = sum(map(hlo.size, operands))
    found.append(Collective(kind, operands, group, times, times * sent(kind, size, group),
                            i.source))

  for name, times in hlo.times(computations, entry).items():
    if name in fused:
      continue
    inside = {}
    for i in computations[name]:
      if i.opcode.removesuffix("-start") in KINDS:
        add(i, name, times)
      elif i.opcode == "fusion":
        parts = [(c, n) for n, c in hlo.inside(i, computations) if c.opcode in KINDS]
        if parts:
          inside[i.name] = parts
    stages = find_stages(computations[name], {
      fusion: [c for c, _ in parts] for fusion, parts in inside.items()}, computations)
    for fusion, collective in stages.started_here:
      c, n = next((c, n) for c, n in inside[fusion] if c.name == collective)
      add(c, n, times)
  return found


def sent(kind: str, size: float, group: int) -> float:
  """Bytes that a device sends round a ring of `group` for an operand of `size` bytes."""
  return size * dict(zip(KINDS, (group - 1, (group - 1) / group, 2 * (group - 1) / group,
                                 (group - 1) / group, 1)))[kind]


def bytes_by_kind(found: list[Collective]) -> dict[str, float]:
  """The bytes that a device sends, for each kind that there is."""
  totals = collections.Counter()
  for c in found:
    totals[c.kind] += c.bytes
  return dict(totals)


def least_bytes(config, student, mesh, resolution: int = 0, teacher=None) -> dict[str, float]:
  """What a step must send from each device for its layout, in bytes by kind.

  Parameters cut over `fsdp` are gathered in the computation's dtype: each network's once, and the
  student's blocks again for the backward pass. Gradients are summed once, in
  float32. With micro-batches, blocks are gathered and all gradients summed for each of them.
  Sinkhorn sums a vector over the prototypes in each of three iterations of both losses, and how
  prototypes are used takes one more of DINO's.
  With `tensor` cut, both branches of a block sum their outputs, backward the gradients of their
  inputs, and where a block is computed again, attention's output; the heads' sums are not in here.

  Args:
    config: of the run.
    student: its parameters as shapes with shardings.
    mesh: their mesh.
    resolution: which entry of the lists of crop sizes.
    teacher: parameters of a frozen teacher, likewise, of which the step gathers the prototypes
      alone, and the average of the student nothing; `least_bytes_of_targets` is the rest.
  """
  width = np.dtype(config.train.dtype).itemsize
  sizes = mesh.shape
  fsdp, shards, parts = sizes["fsdp"], sizes["fsdp"] * sizes["data"], config.train.micro_batches
  least = collections.Counter()
  for path, x in jax.tree_util.tree_leaves_with_path(student):
    names = [key.key for key in path]
    held = _held(x, sizes)
    if "fsdp" in _cut(x):
      passes = 1 + (teacher is None) + ("blocks" in names) + (
        names[0] == "backbone" and config.gram.teacher == "own")
      passes *= parts if "blocks" in names else 1
      least["all-gather"] += passes * sent("all-gather", width * held, fsdp)
      least["reduce-scatter"] += parts * sent("reduce-scatter", 4 * held * fsdp, fsdp)
      least["all-reduce"] += parts * sent("all-reduce", 4 * held, sizes["data"])
    else:
      least["all-reduce"] += parts * sent("all-reduce", 4 * held, shards)
  vectors = 4 * config.dino.prototypes + 3 * config.ibot.prototypes
  least["all-reduce"] += sent("all-reduce", 4 * vectors, shards)
  student_crops, teacher_crops = crops_of_step(config, shards, resolution)
  passes = 4 if config.train.remat in ("none", "dots") else 5
  if "depths" in config.model:  # one branch in place of two, and as a teacher never of its own kind
    passes, teacher_crops = 2, []
  if teacher is not None:
    teacher_crops = []
    least["all-gather"] += sum(
      sent("all-gather", width * _held(x, sizes), fsdp) for x in (
        teacher[head]["last_layer"]["kernel"] for head in ("dino_head", "ibot_head"))
      if "fsdp" in _cut(x))
  summed = (passes * _activations(config.model, student_crops)
            + 2 * _activations(config.model, teacher_crops)) / shards
  least["all-reduce"] += sent("all-reduce", width * summed, sizes["tensor"])
  return {kind: size for kind, size in least.items() if size}


def least_bytes_of_targets(config, teacher_config, teacher, mesh, resolution: int = 0
                           ) -> dict[str, float]:
  """What the targets of a frozen teacher must send from each device, in bytes by kind.

  Its parameters cut over `fsdp` are gathered once, but for the heads' last layers, which each
  student's step gathers; with `tensor` cut, both branches of a block sum their outputs.

  Args:
    config: of a student's run.
    teacher_config: settings with the section `model`.
    teacher: its parameters as shapes with shardings.
    mesh: their mesh.
    resolution: which entry of the lists of crop sizes.
  """
  width, sizes = np.dtype(config.train.dtype).itemsize, mesh.shape
  least = collections.Counter()
  for path, x in jax.tree_util.tree_leaves_with_path(teacher):
    if "fsdp" in _cut(x) and "last_layer" not in [key.key for key in path]:
      least["all-gather"] += sent("all-gather", width * _held(x, sizes), sizes["fsdp"])
  shards = sizes["fsdp"] * sizes["data"]
  crops = crops_of_step(config, shards, resolution)[1][:1]
  summed = 2 * _activations(teacher_config.model, crops) / shards
  least["all-reduce"] += sent("all-reduce", width * summed, sizes["tensor"])
  return {kind: size for kind, size in least.items() if size}


def _cut(x) -> set[str]:
  """The axes of the mesh over which an array is cut."""
  return set(itertools.chain(*map(axes_of, x.sharding.spec)))


def _held(x, sizes) -> float:
  """How many values of an array a device has."""
  return x.size / math.prod(sizes[axis] for axis in _cut(x))


def _activations(model, crops) -> int:
  """How many values leave the blocks, one branch of each."""
  if "callable" in model:
    return 0
  if "depths" in model:
    of_patch = sum(depth * (8 >> i) ** 2 * features
                   for i, (depth, features) in enumerate(zip(model.depths, model.dims)))
    return sum(c.kept * c.patches * of_patch for c in crops)
  tokens = sum(c.kept * (c.patches + 1 + model.storage_tokens) for c in crops)
  return model.depth * model.width * tokens
