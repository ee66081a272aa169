import pytest

from dinov3_jax.costs import hlo

# Layouts with tiles and memory spaces, a loop whose rounds are said and one whose are not, a call.
TEXT = """
HloModule jit_f, is_scheduled=true

%double (p: f32[4]) -> f32[4] {
  %p = f32[4]{0:T(128)} parameter(0)
  ROOT %twice = f32[4]{0:T(128)S(1)} add(%p, %p), metadata={op_name="jit(f)/add"}
}

%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %t = (s32[], /*index=1*/f32[4]{0:T(128)}) parameter(0)
  %x = f32[4]{0:T(128)} get-tuple-element(%t), index=1
  %y = f32[4]{0:T(128)} fusion(%x), kind=kLoop, calls=%double
  %sum = f32[4]{0:T(128)} all-reduce(%y), channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0)
  ROOT %result = (s32[], f32[4]{0}) tuple(%x, %sum)
}

%condition (t: (s32[], f32[4])) -> pred[] {
  %t = (s32[], f32[4]{0}) parameter(0)
  %count = s32[] get-tuple-element(%t), index=0
  %rounds = s32[]{:T(128)} constant(40)
  ROOT %go = pred[] compare(%count, %rounds), direction=LT
}

ENTRY %main (x: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = (s32[], f32[4]{0}) parameter(0)
  %first = (s32[], f32[4]{0}) while(%x), condition=%condition, body=%body
  ROOT %second = (s32[], f32[4]{0}) while(%first), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
}
"""


@pytest.fixture
def parsed():
  return hlo.parse(TEXT)


def test_instructions_stand_in_their_computations(parsed):
  computations, entry = parsed
  assert entry == "main" and list(computations) == ["double", "body", "condition", "main"]
  _, x, y, total, result = computations["body"]
  assert (y.name, y.opcode, y.operands) == ("y", "fusion", ["x"])
  assert (total.channel, y.channel) == ("7", None)
  assert computations["double"][1].source == "jit(f)/add" and not x.source
  assert result.operands == ["x", "sum"]
  assert list(hlo.called(y, computations)) == ["double"]
  loop = computations["main"][1]
  assert [(name, i.name) for name, i in hlo.inside(loop, computations)] == [
    ("body", "t"), ("body", "x"), ("body", "y"), ("double", "p"), ("double", "twice"),
    ("body", "sum"), ("body", "result")]


def test_loops_count_for_their_rounds(parsed):
  assert hlo.times(*parsed) == dict(main=1, body=43, double=43)


def test_groups_of_devices(parsed):
  total = parsed[0]["body"][3]
  assert hlo.group(total, 8) == [0, 2, 4, 6]
  listed = total._replace(arguments="%y), replica_groups={{1,3},{0,2}}")
  assert hlo.group(listed, 4) == [1, 3]
  assert hlo.group(total._replace(arguments="%y)"), 3) == [0, 1, 2]


@pytest.mark.parametrize("text, group", [
  ("mesh['a'=2,'b'=4] {'a'}", [0, 4]), ("mesh['a'=2,'b'=4] {'b'}", [0, 1, 2, 3]),
  ("mesh['a'=2,'b'=4] {'a','b'}", list(range(8))), ("mesh['a'=2,'b'=4] {'b':(1)2}", [0, 2]),
  ("mesh['a'=2,'b'=4] {'b':(2)2}", [0, 1]),
  ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [0, 2])])
def test_groups_along_the_axes_of_a_mesh(parsed, text, group):
  total = next(i for body in parsed[0].values() for i in body if i.opcode == "all-reduce")
  told = total._replace(arguments=f"%y), channel_id=1, replica_groups={text}, to_apply=%add")
  assert hlo.group(told, 8) == group


def test_sizes_of_types():
  kept = "(bf16[8,4]{1,0:T(8,128)(2,1)}, /*index=1*/pred[3]{0:T(128)S(1)}, s32[]{:S(2)})"
  assert hlo.size(kept) == 64 + 3 + 4
  assert hlo.parts(kept) == [(64, True), (3, False), (4, False)]
  assert hlo.shape("f32[2,0,5]{2,1,0}") == [2, 0, 5] and hlo.shape("f32[]") == []
