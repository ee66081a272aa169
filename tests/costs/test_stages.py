from dinov3_jax.costs import hlo
from dinov3_jax.costs.stages import find_stages

PROGRAM = """HloModule jit_f, is_scheduled=true

%piece (s: bf16[4,8]) -> bf16[16,8] {
  %s = bf16[4,8]{1,0} parameter(0)
  %g = bf16[16,8]{1,0} all-gather(%s), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
}

%body (t: (bf16[4,8], u32[])) -> (bf16[4,8], u32[]) {
  %t = (bf16[4,8]{1,0}, u32[]{:S(2)}) parameter(0)
  %p = bf16[4,8]{1,0} get-tuple-element(%t), index=0
  %q = u32[]{:S(2)} get-tuple-element(%t), index=1
  %on = (bf16[4,8]{1,0}, u32[]{:S(2)}) fusion(%p, %q), calls=%piece
  %alone = bf16[16,8]{1,0} fusion(%p), calls=%piece
  %j = (u32[]{:S(2)}, bf16[4,8]{1,0}) tuple(%q, %p)
  %inner = (u32[]{:S(2)}, bf16[4,8]{1,0}) while(%j), condition=%none, body=%none
}

%pair (s: bf16[4,8], u: bf16[4,8]) -> bf16[16,8] {
  %s = bf16[4,8]{1,0} parameter(0)
  %u = bf16[4,8]{1,0} parameter(1)
  %g = bf16[16,8]{1,0} all-gather(%s), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %h = bf16[16,8]{1,0} all-gather(%u), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
}

%both (a: bf16[4,8]) -> bf16[16,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = bf16[4,8]{1,0} parameter(1)
  %x = (bf16[4,8]{1,0}, u32[]{:S(2)}) fusion(%a), calls=%piece
  %y = (bf16[4,8]{1,0}, u32[]{:S(2)}) fusion(%b), calls=%piece
  %x0 = bf16[4,8]{1,0} get-tuple-element(%x), index=0
  %x1 = u32[]{:S(2)} get-tuple-element(%x), index=1
  %y0 = bf16[4,8]{1,0} get-tuple-element(%y), index=0
  %on = (bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[]{:S(2)}) fusion(%y0, %x0, %x1), calls=%pair, ALIASES
  %on0 = bf16[4,8]{1,0} get-tuple-element(%on), index=0
  %on1 = bf16[4,8]{1,0} get-tuple-element(%on), index=1
  %z = bf16[16,8]{1,0} fusion(%on0, %x1), calls=%piece
  %w = bf16[16,8]{1,0} fusion(%on1, %x1), calls=%piece
}

ENTRY %main (a: bf16[4,8]) -> bf16[16,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %x = (bf16[4,8]{1,0}, u32[]{:S(2)}) fusion(%a), calls=%piece
  %x0 = bf16[4,8]{1,0} get-tuple-element(%x), index=0
  %x1 = u32[]{:S(2)} get-tuple-element(%x), index=1
  %y0 = bf16[4,8]{1,0} bitcast(%x0)
  %i = (bf16[4,8]{1,0}, u32[]{:S(2)}) tuple(%y0, %x1)
  %w = (bf16[4,8]{1,0}, u32[]{:S(2)}) while(%i), condition=%none, body=%body
  %w0 = bf16[4,8]{1,0} get-tuple-element(%w), index=0
  %w1 = u32[]{:S(2)} get-tuple-element(%w), index=1
  %z = bf16[16,8]{1,0} fusion(%w0, %w1), calls=%piece
}
"""


ALIASES = "output_to_operand_aliasing={{0}: (1, {}), {1}: (0, {}), {2}: (2, {})}"


def stages(name):
  computations, entry = hlo.parse(PROGRAM.replace("ALIASES", ALIASES))
  body = computations[name or entry]
  inside = {i.name: [c for _, c in hlo.inside(i, computations) if c.opcode == "all-gather"]
            for i in body if i.opcode == "fusion"}
  return find_stages(body, inside, computations)


def test_what_is_handed_on_through_a_loop_is_one_collective():
  found = stages(None)
  assert found.started_here == {("x", "g"): ["x", "z"]}
  assert found.loops == {"w": {0: ("x", "g"), 1: ("x", "g")}}
  assert not found.from_outside


def test_a_loop_carries_on_what_comes_with_a_semaphore_and_starts_what_does_not():
  found = stages("body")
  assert found.from_outside == {0: ["on"]}
  assert found.started_here == {("alone", "g"): ["alone"]}
  assert found.loops == {"inner": {0: 1, 1: 0}}  # handed on to a loop within


def test_a_fusion_may_carry_on_two():
  found = stages("both")
  assert found.started_here == {("x", "g"): ["x", "on", "z"], ("y", "g"): ["y", "on", "w"]}
