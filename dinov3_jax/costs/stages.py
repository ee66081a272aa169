"""Which fusions of a TPU's program carry one collective on.

A collective that goes on beside products is written several times: in a fusion that starts it, in
those that compute meanwhile, and in one that ends it. What it moves, and semaphores, pass from each
of them to the next, also into loops, whose rounds then carry it on. Different collectives may have
the same kind, channel and size, so they are told apart by following these values.
"""

import re
from typing import NamedTuple

from dinov3_jax.costs import hlo

Start = tuple[str, str]  # the fusion that starts a collective, and the instruction inside
SEMAPHORE = re.compile(r"u32\[\]\{[^}]*S\(2\)")  # the memory space of semaphores
_PASSING = {"bitcast", "copy", "copy-start", "copy-done", "optimization-barrier", "opt-barrier"}


class Stages(NamedTuple):
  """The collectives of a computation's fusions.

  Attributes:
    started_here: of each the fusions that it goes through, in order; a single one is a collective
      that is waited for.
    from_outside: by position in a loop's values, the fusions of the loop's body that carry on one
      which started before the loop.
    loops: of each loop in the computation, by position in its values, the collectives that it is
      handed: those that started here, and by their own position those from outside.
  """

  started_here: dict[Start, list[str]]
  from_outside: dict[int, list[str]]
  loops: dict[str, dict[int, Start | int]]


def find_stages(body: list[hlo.Instruction], inside: dict[str, list[hlo.Instruction]],
                computations: hlo.Computations) -> Stages:
  """Follows the values that fusions with collectives hand on.

  Not from one round of a loop to the next: a collective that starts in one and ends in another
  counts as waited for.

  Args:
    body: a computation.
    inside: by name, the collectives within each of its fusions that have any.
    computations: of the program.
  """
  types = {i.name: i.type for i in body}
  found = Stages({}, {}, {})
  values = {}  # by name: a start, a position in the loop's values, or those of a tuple's parts
  for i in body:
    if i.opcode == "parameter":
      values[i.name] = _LoopValues()
    elif i.opcode == "get-tuple-element":
      value = values.get(i.operands[0])
      index = int(re.search(r"index=(\d+)", i.arguments)[1])
      if isinstance(value, _LoopValues):
        values[i.name] = index
      else:
        values[i.name] = value.get(index) if isinstance(value, dict) else value
    elif i.opcode == "tuple":
      values[i.name] = {n: values.get(x) for n, x in enumerate(i.operands)}
    elif i.opcode == "while":
      handed = values.get(i.operands[0])
      values[i.name] = handed if isinstance(handed, dict) else {}
      found.loops[i.name] = {n: x for n, x in values[i.name].items() if isinstance(x, tuple | int)}
    elif i.opcode in _PASSING and i.operands:
      values[i.name] = values.get(i.operands[0])
    elif i.opcode == "fusion" and i.name in inside:
      goes_on = any(SEMAPHORE.match(types.get(x, "")) for x in i.operands)
      starts = []
      for c in inside[i.name]:
        value = values.get(_operand(i, c, computations)) if goes_on else None
        if isinstance(value, int):
          found.from_outside.setdefault(value, []).append(i.name)
        else:
          value = value if isinstance(value, tuple) else (i.name, c.name)
          found.started_here.setdefault(value, []).append(i.name)
        starts.append(value)
      values[i.name] = starts[0] if len(starts) == 1 else _aliased(i, values)
  return found


class _LoopValues:
  """The tuple of values that a loop's body takes."""


def _operand(fusion: hlo.Instruction, inner: hlo.Instruction, computations: hlo.Computations
             ) -> str | None:
  """What of a fusion's operands a collective within it takes."""
  for name in hlo.called(fusion, computations):
    for i in computations[name]:
      if i.opcode == "parameter" and i.name in inner.operands:
        return fusion.operands[int(re.match(r"\d+", i.arguments)[0])]
  return None


def _aliased(fusion: hlo.Instruction, values: dict) -> dict:
  """By position, which of a fusion's results are operands that it hands on, and whose they are."""
  pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}", fusion.arguments)
  return {int(n): values.get(fusion.operands[int(m)]) for n, m in pairs}
