"""Which fusions of a TPU's program carry one collective on.

A collective that goes on beside products is written several times: in a fusion that starts it, in
those that compute meanwhile, and in one that ends it. What it moves, and semaphores, pass from each
of them to the next; also into loops, whose rounds then carry it on. Other collectives may have the
same kind, channel and size, so that the values alone tell which is which.
"""

import re
from typing import NamedTuple

from dinov3_jax.costs import hlo

Flight = tuple[str, str]  # the fusion that starts it, and its instruction in there
SEMAPHORE = re.compile(r"u32\[\]\{[^}]*S\(2\)")  # the memory space of semaphores
_PASSING = {"bitcast", "copy", "copy-start", "copy-done", "optimization-barrier", "opt-barrier"}


class Stages(NamedTuple):
  """The collectives of a computation's fusions.

  Attributes:
    own: of each the fusions that it goes through, in order; one alone waits for it.
    foreign: by position in a loop's values, the fusions of the loop's body that carry on one which
      started before the loop.
    loops: of each loop, by position in its values, those of `own` that it is handed.
  """

  own: dict[Flight, list[str]]
  foreign: dict[int, list[str]]
  loops: dict[str, dict[int, Flight]]


def find_stages(body: list[hlo.Instruction], inside: dict[str, list[hlo.Instruction]],
                computations: hlo.Computations) -> Stages:
  """Follows the values that fusions with collectives hand on.

  Args:
    body: a computation.
    inside: by name, the collectives within each of its fusions that have any.
    computations: of the program.
  """
  types = {i.name: i.type for i in body}
  found = Stages({}, {}, {})
  values = {}  # by name: a flight, a position in the loop's values, or those of a tuple's parts
  for i in body:
    if i.opcode == "parameter":
      values[i.name] = _Position()
    elif i.opcode == "get-tuple-element":
      value = values.get(i.operands[0])
      index = int(re.search(r"index=(\d+)", i.arguments)[1])
      if isinstance(value, _Position):
        values[i.name] = index
      else:
        values[i.name] = value.get(index) if isinstance(value, dict) else value
    elif i.opcode == "tuple":
      values[i.name] = {n: values.get(x) for n, x in enumerate(i.operands)}
    elif i.opcode == "while":
      handed = values.get(i.operands[0])
      handed = handed if isinstance(handed, dict) else {}
      values[i.name] = handed
      found.loops[i.name] = {n: x for n, x in handed.items() if isinstance(x, tuple)}
    elif i.opcode in _PASSING and i.operands:
      values[i.name] = values.get(i.operands[0])
    elif i.opcode == "fusion" and i.name in inside:
      goes_on = any(SEMAPHORE.match(types.get(x, "")) for x in i.operands)
      for c in inside[i.name]:
        operand = _operand(i, c, computations)
        flight = values.get(operand) if goes_on else None
        if isinstance(flight, int):
          found.foreign.setdefault(flight, []).append(i.name)
        else:
          flight = flight if isinstance(flight, tuple) else (i.name, c.name)
          found.own.setdefault(flight, []).append(i.name)
        values[i.name] = flight
  return found


class _Position:
  """Stands for the values of a loop, which are numbered."""


def _operand(fusion: hlo.Instruction, inner: hlo.Instruction, computations: hlo.Computations
             ) -> str | None:
  """What of a fusion's operands a collective within it takes."""
  for name in hlo.called(fusion, computations):
    for i in computations[name]:
      if i.opcode == "parameter" and i.name in inner.operands:
        return fusion.operands[int(re.match(r"\d+", i.arguments)[0])]
  return None
