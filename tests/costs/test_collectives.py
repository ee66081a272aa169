import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from dinov3_jax.costs.collectives import bytes_by_kind, collectives, least_bytes, sent
from dinov3_jax.train import ahead, prepare, sharding


def elements(operand):
  return math.prod(int(d) for d in re.search(r"\[([\d,]*)\]", operand)[1].split(",") if d)


@pytest.fixture
def config(tiny_config):
  """All that could send something: kept rows, masks, KoLeo groups, a Gram teacher, remat."""
  tiny_config.model.update(drop_path=0.4, ffn="swiglu", depth=3, num_heads=4,
                           untie_global_and_local_cls_norm=True)
  tiny_config.dino.update(prototypes=512, hidden=96)
  tiny_config.ibot.update(prototypes=256, hidden=80, bottleneck=24)
  tiny_config.gram.teacher = "own"
  tiny_config.crops.gram_sizes = (64,)
  tiny_config.train.update(batch_size=32, remat="full")
  return tiny_config


def program(config, sizes, on_mesh=True):
  """The compiled step's collectives, and its state's shapes."""
  config.mesh.update(dict(zip(("data", "fsdp", "tensor"), sizes)))
  mesh = sharding.make_mesh(config, jax.devices()[:8])
  state = sharding.abstract_state(mesh, functools.partial(prepare.init_state, config))
  batch = sharding.abstract_batch(config, mesh)
  if on_mesh:
    step = prepare.jit_step(config, mesh, state)
  else:
    layout = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(prepare.make_train_step(config), out_shardings=(layout, None))
  return collectives(step.lower(state, batch).compile().as_text(), 8), state, mesh


def unexpected(found, config, state, mesh):
  """The collectives that are neither gathers of parameters, nor sums of gradients, of vectors over
  the prototypes or of a few numbers."""
  params = jax.tree.leaves(state.student)
  blocks = jax.tree.leaves(state.student["backbone"]["blocks"])
  each = [(x, x.size) for x in params] + [(x, x.size // config.model.depth) for x in blocks]
  tensor = mesh.shape["tensor"]
  held = lambda x, size: size // math.prod(
    mesh.shape[a] for axes in x.sharding.spec if axes for a in ((axes,) if isinstance(axes, str)
                                                               else axes))
  shards = {held(x, size) for x, size in each}
  gradients = {size // t for _, size in each for t in {1, tensor}} | shards
  vectors = {config[head].prototypes // tensor for head in ("dino", "ibot")}

  def expected(c):
    sizes = set(map(elements, c.operands))
    few = {size for size in sizes if size <= 32}
    if c.kind == "all-gather":
      return sizes <= shards
    return c.kind in ("all-reduce", "reduce-scatter") and sizes <= gradients | vectors | few

  return [c for c in found if not expected(c)]


def ahead_bytes(config, backbone, mesh, passes):
  """What gathering a block ahead adds to the least: a block's `qkv` once more in every pass, and
  its gradient once more on the way back."""
  kernel = backbone["blocks"]["attn"]["qkv"]["kernel"]
  fsdp = mesh.shape["fsdp"]
  held = kernel.size // len(kernel) // fsdp
  itemsize = jnp.dtype(config.train.dtype).itemsize
  return (passes * sent("all-gather", itemsize * held, fsdp),
          sent("reduce-scatter", 4 * held * fsdp, fsdp)
          + sent("all-reduce", 4 * held, mesh.shape["data"]))


@pytest.mark.parametrize("parts", [1, 2])
def test_parameters_are_gathered_gradients_summed_and_nothing_else_moves(config, parts):
  config.train.micro_batches = parts
  config.koleo.group = 2
  found, state, mesh = program(config, (1, 8, 1))
  assert unexpected(found, config, state, mesh) == []
  least = least_bytes(config, state.student, mesh)
  # Each block once for every pass through it, the rest once for each network. Both teachers pass
  # once, the student forth, once more, and back.
  gathered, scattered = ahead_bytes(config, state.student["backbone"], mesh, passes=4)
  more = bytes_by_kind(found)["all-gather"] - least["all-gather"]
  assert gathered <= more <= parts * gathered  # the first block's need not wait for its part
  summed = sum(c.bytes for c in found if c.kind != "all-gather")
  assert summed == pytest.approx(
    least["reduce-scatter"] + least["all-reduce"] + parts * scattered, rel=0.02)


def test_of_a_frozen_teacher_all_is_gathered_once(distill_config, tiny_config):
  """Its heads' last layers by the student's step, which gathers no average of its own."""
  distill_config.update_from_flattened_dict({
    "mesh.data": 2, "mesh.fsdp": 4, "train.batch_size": 16, "koleo.group": 2,
    "train.remat": "full", "model.depth": 3})
  tiny_config.dino.prototypes, tiny_config.ibot.prototypes = 32, 24
  mesh = sharding.make_mesh(distill_config, jax.devices()[:8])
  for part in ahead.parts(distill_config, mesh, taught_by=tiny_config):
    found = collectives(part.lower().compile().as_text(), 8)
    learns = "reduce-scatter" in part.least
    backbone = (part.kept.student if learns else part.kept)["backbone"]
    gathered, scattered = ahead_bytes(distill_config, backbone, mesh, passes=1 + learns)
    assert bytes_by_kind(found)["all-gather"] == part.least["all-gather"] + gathered
    summed = sum(c.bytes for c in found if c.kind != "all-gather")
    least = part.least.get("reduce-scatter", 0) + part.least.get("all-reduce", 0)
    assert summed == pytest.approx(least + learns * scattered, rel=0.02)


def test_without_knowing_its_mesh_the_step_moves_more(config):
  found, state, mesh = program(config, (1, 8, 1), on_mesh=False)
  assert unexpected(found, config, state, mesh)


def test_tensor_parallel_blocks_sum_activations_and_gather_none(config):
  found, state, mesh = program(config, (2, 2, 2))
  assert {c.kind for c in found} <= {"all-gather", "reduce-scatter", "all-reduce"}
  in_blocks = [c for c in found if c.times == config.model.depth]
  # Rows that go through a block: 16 crops of a shard or 9 of them, 24 or 14 local ones; of 16
  # patches (64 for the Gram teacher) or 4, and two tokens.
  rows = {(16, 18), (16, 66), (9, 18), (14, 6)}
  activations = {n * t * config.model.width for n, t in rows}
  surprises = unexpected(in_blocks, config, state, mesh)
  assert surprises and {elements(x) for c in surprises for x in c.operands} - activations <= {
    elements(x) for c in found if c not in surprises for x in c.operands}
  assert {c.kind for c in surprises} == {"all-reduce"}
  least = least_bytes(config, state.student, mesh)
  assert sum(bytes_by_kind(found).values()) < 1.2 * sum(least.values())


def test_loops_and_groups_are_counted():
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

  @jax.jit
  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("b"), out_specs=P(), check_vma=False)
  def f(x):  # [2, 3] a device
    def body(total, _):
      return total + jax.lax.psum(jnp.sin(total), "a"), jax.lax.psum(total, ("a", "b"))
    total, sums = jax.lax.scan(body, x, length=5)
    return jax.lax.all_gather(total, "b"), sums

  found = collectives(f.lower(jnp.zeros((8, 3))).compile().as_text(), 8)
  assert sorted((c.kind, c.group, c.times, c.bytes) for c in found) == [
    ("all-gather", 4, 1, 3 * 24),
    ("all-reduce", 2, 5, 5 * 2 * 24 * 1 / 2),
    ("all-reduce", 8, 5, 5 * 2 * 24 * 7 / 8)]
  assert all("psum" in c.source or "all_gather" in c.source for c in found)


# Layouts with tiles, asynchronous starts, and loops whose number of rounds is not said.
HLO = """
HloModule jit_f

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%scattered (p: bf16[8,4]) -> bf16[1,4] {
  %p = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %rs = bf16[1,4]{1,0} reduce-scatter(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
}

%body (t: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %t = (s32[], /*index=1*/bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,4]{1,0} get-tuple-element(%t), index=1
  %fused = bf16[1,4]{1,0} fusion(%x), kind=kCustom, calls=%scattered
  %start = (bf16[1,4], bf16[8,4]) all-gather-start(%fused), replica_groups=[1,8]<=[8], op_name="f"
  %done = bf16[8,4]{1,0} all-gather-done(%start)
  ROOT %result = (s32[], bf16[8,4]{1,0}) tuple(%x, %done)
}

%condition (t: (s32[], bf16[8,4])) -> pred[] {
  %t = (s32[], bf16[8,4]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%t), index=0
  %rounds = s32[]{:T(128)} constant(40)
  ROOT %go = pred[] compare(%count, %rounds), direction=LT
}

ENTRY %main (x: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %x = (s32[], bf16[8,4]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[8,4]{1,0}) while(%x), condition=%condition, body=%body
}
"""


def test_as_a_tpu_compiler_writes_it():
  gather, scatter = sorted(collectives(HLO, 8))
  assert gather == ("all-gather", ("bf16[1,4]{1,0}",), 8, 40, 40 * 7 * 8.0, "f")
  assert scatter[:1] + scatter[2:5] == ("reduce-scatter", 8, 40, 40 * 7 / 8 * 64)


def test_a_gather_beside_other_work_counts_once():
  """Its start, the fusion that it goes on beside, and its end, in the rounds of a loop. Another one
  of the same channel and size is another."""
  piece = ("%piece (p: bf16[1,4]) -> bf16[8,4] {\n  %p = bf16[1,4]{1,0} parameter(0)\n"
           "  ROOT %g = bf16[8,4]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8]\n"
           "}\n\n")
  part, semaphore = "bf16[1,4]{1,0}", "u32[]{:S(2)}"
  lines, handed = [], "%fused"
  for name in ("begin", "beside", "end"):
    lines += [f"%{name} = ({part}, {semaphore}) fusion({handed}), calls=%piece",
              f"%{name}0 = {part} get-tuple-element(%{name}), index=0",
              f"%{name}1 = {semaphore} get-tuple-element(%{name}), index=1"]
    handed = f"%{name}0, %{name}1"
  lines.append("%other = bf16[8,4]{1,0} fusion(%fused), calls=%piece")
  hlo = HLO.replace("%body (t", piece + "%body (t").replace(
    "  %start =", "".join(f"  {line}\n" for line in lines) + "  %start =")
  found = [c for c in collectives(hlo, 8) if c.kind == "all-gather"]
  assert [c.bytes for c in found] == [40 * 7 * 8.0] * 3  # these two, and the one before


def test_bytes_on_a_ring():
  assert [sent(kind, 8.0, 4) for kind in ("all-gather", "reduce-scatter", "all-reduce",
                                          "all-to-all", "collective-permute")] == [24, 6, 12, 6, 8]
