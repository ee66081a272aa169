import jax
import jax.numpy as jnp
import pytest

from dinov3_jax.costs import hlo
from dinov3_jax.costs.flops import CHIPS, Chip
from dinov3_jax.costs.schedule import link_bandwidth, product_flops, read_schedule

# One product of [1000, 1000] takes 2 ms of it, and 6 MB in and out 60 us; 1 MB goes over a link in
# 1 ms.
CHIP = Chip(flops=1e12, memory=1e9, memory_bandwidth=1e11)
MATRIX = "bf16[1000,1000]{1,0:T(8,128)(2,1)}"
PRODUCT = "convolution(%a, %b), dim_labels=bf_io->bf"
GATHER = "all-gather({}), channel_id={}, replica_groups=[1,4]<=[4], dimensions={{0}}"
SHARD = "bf16[250,1000]{1,0:T(8,128)(2,1)}"  # 0.5 MB, of which a device sends 1.5

HEADER = "HloModule jit_f, is_scheduled=true\n\n"
ENTRY = f"""ENTRY %main (a: bf16[1000,1000], b: bf16[1000,1000], s: bf16[250,1000]) -> bf16[] {{
  %a = {MATRIX} parameter(0)
  %b = {MATRIX} parameter(1)
  %s = {SHARD} parameter(2)
"""


def read(body, computations=""):
  text = HEADER + computations + ENTRY + "".join(f"  %{x}\n" for x in body) + "}\n"
  return read_schedule(text, 4, CHIP, lambda group: 1e9)


def exposed(schedule):
  return [t.exposed for t in schedule.transfers]


def test_one_instruction_is_waited_for():
  found = read([f"g = {MATRIX} " + GATHER.format("%s", 1), f"c = {MATRIX} {PRODUCT}"])
  transfer, = found.transfers
  assert (transfer.kind, transfer.bytes, transfer.beside) == ("all-gather", 1.5e6, ())
  assert transfer.seconds == transfer.exposed == pytest.approx(1.5e-3)
  assert found.computing == pytest.approx(2e-3)
  assert found.exposed == found.sending == {"all-gather": pytest.approx(1.5e-3)}


@pytest.mark.parametrize("start, end", [
  ("all-gather-start(%s), channel_id=1, replica_groups=[1,4]<=[4]", "all-gather-done(%start)"),
  ("async-start(%s), calls=%wrapped", "async-done(%start)"),
])
def test_what_stands_between_start_and_end_hides_it(start, end):
  wrapped = (f"%wrapped (p: bf16[250,1000]) -> bf16[1000,1000] {{\n  %p = {SHARD} parameter(0)\n"
             f"  ROOT %g = {MATRIX} {GATHER.format('%p', 1)}\n}}\n\n")
  before, between = f"c = {MATRIX} {PRODUCT}", f"d = {MATRIX} {PRODUCT}"
  start, end = f"start = ({SHARD}, {MATRIX}) {start}", f"end = {MATRIX} {end}"
  hidden = read([before, start, between, end], wrapped)
  assert [(t.exposed, t.beside) for t in hidden.transfers] == [(0, ("d",))]
  assert hidden.computing == pytest.approx(4e-3)
  assert exposed(read([before, between, start, end], wrapped)) == [pytest.approx(1.5e-3)]


def test_one_that_passes_through_an_update_ends_at_its_end():
  found = read([f"start = {MATRIX} all-gather-start(%s), channel_id=1, replica_groups=[1,4]<=[4]",
                f"on = {MATRIX} async-update(%start)", f"c = {MATRIX} {PRODUCT}",
                f"end = {MATRIX} all-gather-done(%on)"])
  assert [(t.exposed, t.beside) for t in found.transfers] == [(0, ("c",))]


def fusion(name, *lines):
  return (f"%{name} (a: bf16[1000,1000], b: bf16[1000,1000], s: bf16[250,1000]) -> "
          f"bf16[1000,1000] {{\n  %a = {MATRIX} parameter(0)\n  %b = {MATRIX} parameter(1)\n"
          f"  %s = {SHARD} parameter(2)\n" + "".join(f"  %{x}\n" for x in lines) + "}\n\n")


# What the fusions of a gather hand on: the part, the whole, and a semaphore.
CONTEXT = f"({SHARD}, {MATRIX}, u32[]{{:S(2)}})"


def start(name, shard="s"):
  return f"{name} = {CONTEXT} fusion(%a, %b, %{shard}), kind=kCustom, calls=%piece"


def parts(source):
  """The instructions that take a context apart; `source` is what gives it."""
  return [f"{source}{n} = {kind} get-tuple-element(%{source}), index={n}"
          for n, kind in enumerate((SHARD, MATRIX, "u32[]{:S(2)}"))]


def step(name, source, called="both"):
  return f"{name} = {CONTEXT} fusion(%a, %{source}1, %{source}0, %{source}2), calls=%{called}"


def end(name, source):
  return f"{name} = {MATRIX} fusion(%a, %{source}1, %{source}0, %{source}2), calls=%piece"


PIECE = f"g = {MATRIX} " + GATHER.format("%s", 1)
FUSIONS = (fusion("piece", PIECE) + fusion("both", PIECE, f"c = {MATRIX} {PRODUCT}")
           + fusion("product", f"c = {MATRIX} {PRODUCT}"))


def test_fusions_that_hand_on_what_they_move_are_one_transfer_that_some_of_them_hide():
  found = read([start("x"), *parts("x"), step("y", "x"), *parts("y"), end("z", "y")], FUSIONS)
  assert [(t.bytes, t.exposed, t.beside) for t in found.transfers] == [(1.5e6, 0, ("y",))]
  assert found.computing == pytest.approx(2e-3)


def test_a_fusion_without_it_does_not_carry_it_on():
  product = f"other = {MATRIX} fusion(%a, %b, %s), kind=kCustom, calls=%product"
  found = read([start("x"), *parts("x"), product, end("z", "x")], FUSIONS)
  assert [(t.exposed, t.beside) for t in found.transfers] == [(pytest.approx(1.5e-3), ())]


def test_transfers_of_one_channel_and_size_are_told_apart_by_what_they_move():
  found = read([start("x"), *parts("x"), start("v", "b"), *parts("v"), step("y", "x"), *parts("y"),
                end("u", "v"), end("z", "y")], FUSIONS)
  assert [(t.exposed, t.beside) for t in found.transfers] == [
    (pytest.approx(1.5e-3), ()), (0, ("y",))]


def test_a_transfer_goes_on_beside_the_rounds_of_a_loop():
  """One round hides a half of it."""
  tiny = fusion("tiny", PIECE, f"c = bf16[500,500]{{1,0}} {PRODUCT}")
  tuple_type = f"({MATRIX}, {SHARD}, {MATRIX}, u32[]{{:S(2)}})"
  body = (f"%body (t: {tuple_type}) -> {tuple_type} {{\n  %t = {tuple_type} parameter(0)\n"
          f"  %a = {MATRIX} get-tuple-element(%t), index=0\n" + "".join(
            f"  %x{n} = {kind} get-tuple-element(%t), index={n + 1}\n"
            for n, kind in enumerate((SHARD, MATRIX, "u32[]{:S(2)}")))
          + f"  %{step('y', 'x', 'tiny')}\n" + "".join(f"  %{x}\n" for x in parts("y"))
          + f"  ROOT %r = {tuple_type} tuple(%a, %y0, %y1, %y2)\n}}\n\n")
  for rounds, left in ((1, 1.0e-3), (2, 0.5e-3), (10, 0)):
    loop = [f"i = {tuple_type} tuple(%a, %x0, %x1, %x2)",
            f'w = {tuple_type} while(%i), condition=%none, body=%body, backend_config={{'
            f'"known_trip_count":{{"n":"{rounds}"}}}}',
            *(f"w{n} = {kind} get-tuple-element(%w), index={n + 1}"
              for n, kind in enumerate((SHARD, MATRIX, "u32[]{:S(2)}")))]
    found = read([start("x"), *parts("x"), *loop, end("z", "w")], tiny + FUSIONS + body)
    transfer, = found.transfers
    assert (transfer.times, transfer.beside) == (1, ("w",))
    assert transfer.exposed == pytest.approx(left, abs=2e-5)
    assert found.computing == pytest.approx(rounds * 0.5e-3, rel=0.05)


def test_two_at_a_time_share_the_links():
  """3 ms of transfers beside 2 ms of work: the second has 1 ms left when it is awaited."""
  start = "{0} = {1} all-gather-start(%s), channel_id={2}, replica_groups=[1,4]<=[4]"
  found = read([start.format("x", MATRIX, 1), start.format("y", MATRIX, 2),
                f"c = {MATRIX} {PRODUCT}",
                f"u = {MATRIX} all-gather-done(%x)", f"v = {MATRIX} all-gather-done(%y)"])
  assert exposed(found) == [0, pytest.approx(1e-3)]


def test_the_rounds_of_loops_count():
  body = fusion("body", f"g = {MATRIX} " + GATHER.format("%s", 1), f"c = {MATRIX} {PRODUCT}")
  condition = ("%condition (t: s32[]) -> pred[] {\n  %n = s32[] constant(10)\n"
               "  ROOT %go = pred[] compare(%t, %n), direction=LT\n}\n\n")
  found = read([f"w = {MATRIX} while(%a), condition=%condition, body=%body"], body + condition)
  assert found.computing == pytest.approx(20e-3)
  assert [t.times for t in found.transfers] == [10]
  assert found.exposed == {"all-gather": pytest.approx(15e-3)}


def test_without_products_the_memory_decides():
  """Not what stays on the chip, what an operand is overwritten with, or what of it is not read."""
  moved = lambda line, computations="": 1e11 * read([line], computations).computing
  assert moved(f"c = {MATRIX} add(%a, %b)") == pytest.approx(6e6)
  on_chip = "bf16[1000,1000]{1,0:T(8,128)(2,1)S(1)}"
  assert moved(f"c = {on_chip} add(%a, %b)") == pytest.approx(4e6)
  slices = fusion("slices", "i = s32[] constant(3)",
                  f"x = {SHARD} dynamic-slice(%a, %i, %i)", f"y = {SHARD} add(%x, %s)")
  assert moved(f"c = {SHARD} fusion(%a, %b, %s), calls=%slices", slices) == pytest.approx(
    0.5e6 + 2e6 + 0.5e6 + 0.5e6)
  in_place = f"c = {MATRIX} fusion(%a, %b, %s), calls=%slices, output_to_operand_aliasing="
  assert moved(in_place + "{{}: (0, {})}", slices) == pytest.approx(2e6 + 0.5e6)


def convolution(left, right, result, attributes):
  types = dict(a=left, b=right)
  return product_flops(hlo.Instruction("c", result, "convolution", f"%a, %b), {attributes}"), types)


def test_operations_of_products():
  # Scores as a TPU's compiler writes them, images and heads as axes of a window: 2 x 3 products of
  # [5, 7] and [7, 5].
  assert convolution(
    "bf16[2,3,5,7]{3,2,1,0}", "bf16[2,3,5,7]{3,2,1,0}", "f32[2,3,5,5]{3,2,1,0}",
    "window={size=2x3 stride=1x2 lhs_dilate=2x3}, dim_labels=01bf_01oi->01bf"
  ) == 2 * 2 * 3 * 5 * 5 * 7
  # The three of q, k and v: [4, 8] x [8, 3, 6].
  assert convolution(
    "bf16[4,8,1]{2,1,0}", "bf16[3,8,6]{2,1,0}", "bf16[4,6,3]{2,1,0}",
    "window={size=3 pad=2_2 rhs_reversal=1}, dim_labels=bf0_0io->bf0") == 2 * 4 * 8 * 3 * 6
  # Sums over images, each of which is met once.
  assert convolution(
    "bf16[9,4,8]{2,1,0}", "bf16[9,4,6]{2,1,0}", "f32[8,6,1]{2,1,0}",
    "window={size=9}, dim_labels=0fb_0io->bf0") == 2 * 9 * 4 * 8 * 6


@pytest.mark.parametrize("pattern, shapes", [
  ("ab,bc->ac", ((30, 40), (40, 50))), ("zab,zcb->zac", ((2, 30, 40), (2, 50, 40)))])
def test_dots_are_counted_as_the_compiler_does(pattern, shapes):
  f = jax.jit(lambda x, y: jnp.einsum(pattern, x, y))
  compiled = f.lower(*(jnp.zeros(shape) for shape in shapes)).compile()
  found = sum(product_flops(i, {x.name: x.type for x in body})
              for body in hlo.parse(compiled.as_text())[0].values() for i in body)
  assert found == compiled.cost_analysis()["flops"] > 0


def test_text_without_a_schedule_is_refused():
  with pytest.raises(ValueError, match="the program has no schedule"):
    read_schedule("HloModule jit_f\n", 1, CHIP, lambda group: 1.0)


def test_links_of_a_group_on_a_torus():
  """Rings carry data both ways, parts of them one way; the halves of a chip are closer."""
  grid = [(x, y, 0) for x in range(16) for y in range(16)]
  v6e = link_bandwidth(CHIPS["TPU v6 lite"], grid)
  assert v6e(list(range(16))) == 2 * 100e9
  assert v6e(list(range(8))) == 100e9
  assert v6e(list(range(64))) == 3 * 100e9  # 4 of 16, and 16
  cube = [(x, y, z) for x in range(4) for y in range(4) for z in range(8) for _ in range(2)]
  tpu7x = link_bandwidth(CHIPS["TPU7x"], cube)
  assert tpu7x([0, 1]) == 600e9
  assert tpu7x(list(range(0, 16, 2))) == 2 * 100e9 / 2
  assert tpu7x(list(range(256))) == 6 * 100e9 / 2
