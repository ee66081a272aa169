"""The text of a compiled program, as `jax.stages.Compiled.as_text` gives it."""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|branch_computations|called_computations|"
                     r"true_computation|false_computation)=\{?((?:%?[\w.\-]+(?:, )?)+)")
TYPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")


class Instruction(NamedTuple):
  """A line of a program.

  Attributes:
    name: without the percent sign.
    type: of the result, with its layout.
    opcode: as HLO writes it.
    arguments: the operands and, after the bracket that ends them, the attributes.
  """

  name: str
  type: str
  opcode: str
  arguments: str

  @property
  def operands(self) -> list[str]:
    """The names of the instructions that it takes."""
    return re.findall(r"%([\w.\-]+)", self.arguments.partition(")")[0])

  @property
  def channel(self) -> str | None:
    """What the parts of one transfer share, if it is one between devices."""
    found = re.search(r"channel_id=(\d+)", self.arguments)
    return found and found[1]

  @property
  def source(self) -> str:
    """The operation in the traced program that it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.arguments)
    return found[1] if found else ""


Computations = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Computations, str]:
  """All computations by name, their instructions in order, and the name of the entry."""
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if match := _INSTRUCTION.match(line):
      current.append(Instruction(*match.groups()))
    elif not line.startswith(" ") and (match := _COMPUTATION.match(line)):
      current = computations.setdefault(match[2], [])
      entry = match[2] if match[1] else entry
  return computations, entry


def called(i: Instruction, computations: Computations) -> Iterator[str]:
  """The computations that an instruction runs; a loop's condition is none of them."""
  for names in _CALLED.findall(i.arguments):
    yield from (name for name in re.findall(r"[\w.\-]+", names) if name in computations)


def inside(i: Instruction, computations: Computations) -> Iterator[tuple[str, Instruction]]:
  """All instructions of the computations that an instruction runs, and of those that these run,
  each with the name of its computation."""
  for name in called(i, computations):
    for other in computations[name]:
      yield name, other
      yield from inside(other, computations)


def times(computations: Computations, entry: str) -> dict[str, int]:
  """How often each computation runs in one run of the program."""
  result = collections.Counter()

  def visit(name: str, count: int):
    result[name] += count
    for i in computations[name]:
      repeats = rounds(i, computations) if i.opcode == "while" else 1
      for other in called(i, computations):
        visit(other, count * repeats)

  visit(entry, 1)
  return result


def rounds(loop: Instruction, computations: Computations) -> int:
  """How often the body of a `while` runs: said in so many words, or else by its condition, for the
  loops of `jax.lax.scan` count from 0."""
  if known := re.search(r"known_trip_count\W+n\W+(\d+)", loop.arguments):
    return int(known[1])
  condition = computations[re.search(r"condition=%?([\w.\-]+)", loop.arguments)[1]]
  constants = [re.match(r"(\d+)\)", i.arguments) for i in condition if i.opcode == "constant"]
  return int(constants[0][1]) if len(constants) == 1 and constants[0] else 1


def group(i: Instruction, devices: int) -> list[int]:
  """The first group of devices that a collective joins, all of them if it names none."""
  if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?",
                        i.arguments):
    ids = np.arange(devices).reshape([int(n) for n in match[3].split(",")])
    if match[4]:
      ids = ids.transpose([int(n) for n in match[4].split(",")])
    return ids.reshape(int(match[1]), int(match[2]))[0].tolist()
  if match := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?) \{([^}]*)\}", i.arguments):
    return _mesh_group(*match.groups())
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", i.arguments):
    return [int(n) for n in match[1].split(",")]
  return list(range(devices))


def _mesh_group(axes: str, order: str, joined: str) -> list[int]:
  """The first group along axes of a mesh, as XLA writes it since JAX 0.11.

  Args:
    axes: of the mesh, `'a'=2,'b'=4`.
    order: what says which device lies where, `, device_ids=(0,2,...)`; nothing where they lie in
      the order of their numbers.
    joined: the axes of a group, `'a','b':(1)2`; the latter is a part of an axis that was cut into
      1 x 2 x the rest.
  """
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  numbers = [int(n) for n in re.findall(r"\d+", order)]
  count = math.prod(sizes.values())
  ids = np.array(numbers if len(numbers) == count else range(count)).reshape(list(sizes.values()))
  places = {name: [0] for name in sizes}
  for name, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", joined):
    step = sizes[name] // (int(before) * int(part)) if part else 1
    places[name] = [n * step for n in range(int(part or sizes[name]))]
  return ids[np.ix_(*places.values())].ravel().tolist()


def parts(type_: str) -> list[tuple[int, bool]]:
  """The arrays of a type: the bytes of each, and whether it is in the device's main memory."""
  result = []
  for name, dims, layout in TYPE.findall(type_):
    bits = 8 if name == "pred" else int(re.search(r"\d+", name)[0])
    size = math.prod(int(d) for d in dims.split(",") if d) * bits // 8
    result.append((size, not re.search(r"S\([1-9]\d*\)", layout)))
  return result


def size(type_: str) -> int:
  """The bytes of a type."""
  return sum(size for size, _ in parts(type_))


def shape(type_: str) -> list[int]:
  """The sizes of an array's axes."""
  return [int(d) for d in TYPE.search(type_)[2].split(",") if d]
