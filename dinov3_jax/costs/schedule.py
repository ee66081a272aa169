"""What runs between the start and the end of a compiled program's collectives, and an estimate of
its time from that and the chip's data sheet.

A program that is compiled for TPUs has a schedule: the order in which its text stands. A collective
is one instruction there, for which all wait; or a start and an end (`all-gather-start`,
`async-start`), between which a device's other units carry it on; or several fusions, the first of
which starts it and the last of which ends it, while those between compute and carry it on (see
`stages`). What is not hidden by computation in between is exposed.

The estimate is a lower bound: products take as long as the units for them would need at their peak,
anything else as long as the main memory needs for what goes in and out, collectives as long as the
links need for the bytes, without latency.
"""

import collections
import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from dinov3_jax.costs import hlo
from dinov3_jax.costs.collectives import KINDS, sent
from dinov3_jax.costs.flops import Chip
from dinov3_jax.costs.stages import find_stages

# What moves nothing by itself. A copy with a start and an end goes beside what runs in between.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
         "partition-id", "replica-id", "opt-barrier", "optimization-barrier"}
_OTHERS = {"while", "call", "conditional"}  # run computations that have schedules of their own


class Transfer(NamedTuple):
  """A collective in the schedule.

  Attributes:
    kind: one of `collectives.KINDS`.
    bytes: what a device sends each time.
    times: how often it runs.
    seconds: that the links are busy with it each time.
    exposed: those of them for which the device waits.
    beside: the names of the instructions that compute between its start and its end.
    source: the operation in the traced program that it comes from.
  """

  kind: str
  bytes: float
  times: int
  seconds: float
  exposed: float
  beside: tuple[str, ...]
  source: str


class Schedule(NamedTuple):
  """A program's time on one device, estimated.

  Attributes:
    computing: seconds in which it computes.
    transfers: its collectives.
    hidden_outside: of a loop's body, seconds in which it hides what started before the loop, by
      position in the loop's values.
  """

  computing: float
  transfers: list[Transfer]
  hidden_outside: dict[int, float]

  @property
  def sending(self) -> dict[str, float]:
    """Seconds that the links are busy, by kind of collective."""
    return _total((t.kind, t.times * t.seconds) for t in self.transfers)

  @property
  def exposed(self) -> dict[str, float]:
    """Seconds of them in which the device does nothing else, by kind."""
    return _total((t.kind, t.times * t.exposed) for t in self.transfers)


def read_schedule(text: str, devices: int, chip: Chip, bandwidth: Callable[[list[int]], float]
                  ) -> Schedule:
  """The schedule of a compiled program; loops count for every round.

  Args:
    text: `compiled.as_text()`.
    devices: of the program.
    chip: what one can do; a device has its share of it.
    bandwidth: of the links that join a group of devices, by their numbers in the program: bytes a
      second that each of them sends.

  Raises:
    ValueError: the program has no schedule.
  """
  if "is_scheduled=true" not in text[:1000]:
    raise ValueError("the program has no schedule: it is not the text of a compiled one")
  computations, entry = hlo.parse(text)
  return _Reader(computations, devices, chip, bandwidth).read(entry)


def link_bandwidth(chip: Chip, places: list[tuple[int, ...]]) -> Callable[[list[int]], float]:
  """`bandwidth` of `read_schedule` on a torus of chips, for data that goes round in both directions
  along every axis that a group extends over, or on a part of an axis in one direction.

  Args:
    chip: of which all are.
    places: of the devices in the order of the program, their chips' coordinates.
  """
  whole = [max(axis) + 1 for axis in zip(*places)]

  def bandwidth(group: list[int]) -> float:
    sides = [len(set(axis)) for axis in zip(*(places[i] for i in group))]
    # A chip is closed to a ring where its axis has as many chips as `ring`, or a multiple.
    links = sum(2 if side == size and size % chip.ring == 0 else 1
                for side, size in zip(sides, whole) if side > 1)
    if not links:  # inside a chip
      return chip.inside
    return links * chip.link / chip.devices

  return bandwidth


def _total(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
  result = collections.Counter()
  for name, value in pairs:
    result[name] += value
  return dict(result)


class _Ongoing:
  """A collective that has started and has not ended."""

  def __init__(self, kind: str, size: float, seconds: float, source: str):
    self.kind, self.size, self.seconds, self.source = kind, size, seconds, source
    self.left, self.beside = seconds, []

  def hide(self, seconds: float, name: str) -> float:
    """Lets it go on beside an instruction that computes so long; how much of that it takes."""
    self.beside.append(name)
    hidden = min(self.left, seconds)
    self.left -= hidden
    return hidden

  def finished(self) -> Transfer:
    return Transfer(self.kind, self.size, 1, self.seconds, self.left, tuple(self.beside),
                    self.source)


class _Reader:
  """Goes through the computations of a program in their order."""

  def __init__(self, computations: hlo.Computations, devices: int, chip: Chip,
               bandwidth: Callable[[list[int]], float]):
    self.computations, self.devices, self.bandwidth = computations, devices, bandwidth
    self.flops, self.memory = chip.flops / chip.devices, chip.memory_bandwidth / chip.devices
    self.types = {name: {i.name: i.type for i in body} for name, body in computations.items()}
    self.known = {}

  def read(self, name: str) -> Schedule:
    """The schedule of one run of a computation."""
    if name not in self.known:
      self.known[name] = self._read(name)
    return self.known[name]

  def _read(self, name: str) -> Schedule:
    body, types = self.computations[name], self.types[name]
    transfers = {i.name: self._transfers(name, i) for i in body}
    stages = find_stages(body, {i.name: [c for c, _ in transfers[i.name]] for i in body
                                if i.opcode == "fusion" and transfers[i.name]}, self.computations)
    through = collections.defaultdict(list)  # by fusion, the collectives that it carries on
    for key, names in stages.started_here.items():
      for n in names:
        through[n].append(key)
    started, ongoing, done, computing = {}, {}, [], 0.0
    hidden_outside = collections.Counter()
    for i in body:
      below = self._below(i)
      seconds = below.computing if below else self._seconds(i, types, transfers[i.name])
      computing += seconds
      if below:
        done += below.transfers
        seconds -= sum(t.times * (t.seconds - t.exposed) for t in below.transfers)
        for position, spent in below.hidden_outside.items():
          handed = stages.loops.get(i.name, {}).get(position)
          if isinstance(handed, int):
            hidden_outside[handed] += spent
          elif handed in ongoing:
            seconds -= ongoing[handed].hide(spent, i.name)
      for key, transfer in ongoing.items():
        if seconds > 0 and (key not in stages.started_here or i.name in stages.started_here[key]):
          seconds -= transfer.hide(seconds, i.name)
      if seconds > 0:
        for position, names in stages.from_outside.items():
          if i.name in names:
            hidden_outside[position] += seconds

      new = {c.name: transfer for c, transfer in transfers[i.name]}
      if i.opcode == "fusion":
        for key in through[i.name]:
          names = stages.started_here[key]
          if i.name == names[0]:
            ongoing[key] = new[key[1]]
          if i.name == names[-1]:
            done.append(ongoing.pop(key).finished())
      elif i.opcode.endswith("-start"):
        for transfer in new.values():
          ongoing[i.name] = transfer
          started[i.name] = i.name
      else:
        done += [transfer.finished() for transfer in new.values()]
      if i.opcode.endswith(("-done", "-update")):
        start = next((started[x] for x in i.operands if x in started), None)
        if start and i.opcode.endswith("-update"):
          started[i.name] = start
        elif start and start in ongoing:
          done.append(ongoing.pop(start).finished())
    return Schedule(computing, done + [transfer.finished() for transfer in ongoing.values()],
                    hidden_outside)

  def _below(self, i: hlo.Instruction) -> Schedule | None:
    """Of a loop, a call, or the longest branch of a condition."""
    if i.opcode == "while":
      rounds = hlo.rounds(i, self.computations)
      each = self.read(next(hlo.called(i, self.computations)))
      return Schedule(rounds * each.computing,
                      [t._replace(times=rounds * t.times) for t in each.transfers],
                      {n: rounds * seconds for n, seconds in each.hidden_outside.items()})
    if i.opcode in _OTHERS:
      branches = [self.read(name) for name in hlo.called(i, self.computations)]
      return max(branches, key=lambda s: s.computing + sum(s.sending.values()), default=None)
    return None

  def _transfers(self, name: str, i: hlo.Instruction) -> list[tuple[hlo.Instruction, _Ongoing]]:
    """The collectives that an instruction of a computation is, or that it contains if it is no
    loop or call."""
    if i.opcode in _OTHERS or i.opcode.endswith(("-done", "-update")):
      return []
    found = []
    for where, c in itertools.chain([(name, i)], hlo.inside(i, self.computations)):
      kind = c.opcode.removesuffix("-start")
      if kind in KINDS:
        types = self.types[where]
        group = hlo.group(c, self.devices)
        size = sent(kind, sum(hlo.size(types[x]) for x in c.operands if x in types), len(group))
        seconds = size / self.bandwidth(group) if len(group) > 1 else 0.0
        found.append((c, _Ongoing(kind, size, seconds, c.source or i.source)))
    return found

  def _seconds(self, i: hlo.Instruction, types: dict[str, str], transfers: list) -> float:
    """How long an instruction computes; `transfers` are the collectives in it."""
    if i.opcode in _FREE or i.opcode in KINDS or i.opcode.endswith(("-start", "-done", "-update")):
      return 0.0
    products = product_flops(i, types) + sum(
      product_flops(x, self.types[name]) for name, x in hlo.inside(i, self.computations))
    if transfers and not products:
      return 0.0  # the start or the end of one
    return max(products / self.flops, self._moved(i, types) / self.memory)

  def _moved(self, i: hlo.Instruction, types: dict[str, str]) -> float:
    """Bytes between an instruction and the main memory."""
    main = lambda x: sum(size for size, in_main in hlo.parts(x) if in_main)
    aliases = re.search(r"output_to_operand_aliasing=\{(.*?\)\})*", i.arguments)
    pairs = re.findall(r"\{(\d*)\}: \((\d+)", aliases[0]) if aliases else []
    into, out_of = {int(b) for _, b in pairs}, {int(a or 0) for a, _ in pairs}
    sliced = self._sliced(i)
    total = sum(sliced.get(n, main(types[x])) for n, x in enumerate(i.operands)
                if x in types and n not in into)
    results = hlo.parts(i.type)
    return total + sum(size for n, (size, in_main) in enumerate(results)
                       if in_main and n not in out_of)

  def _sliced(self, i: hlo.Instruction) -> dict[int, int]:
    """By number, the operands of which a fusion reads a slice alone, and how much."""
    result = {}
    if i.opcode != "fusion":
      return result
    body = self.computations[next(hlo.called(i, self.computations))]
    for x in body:
      if x.opcode == "parameter":
        users = [y for y in body if x.name in y.operands]
        if users and all(y.opcode == "dynamic-slice" for y in users):
          result[int(re.match(r"\d+", x.arguments)[0])] = sum(hlo.size(y.type) for y in users)
    return result


def product_flops(i: hlo.Instruction, types: dict[str, str]) -> float:
  """Operations of a product, two for a multiplication and its addition; of others 0.

  A TPU's compiler writes all products as convolutions, batches as axes of a window that meets each
  element once, with zeros in between: places where a window meets padding do not count.

  Args:
    i: an instruction.
    types: of its computation's instructions.
  """
  if i.opcode == "dot":
    lhs = hlo.shape(types[i.operands[0]])
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.arguments)[1]
    summed = math.prod(lhs[int(n)] for n in axes.split(",") if n)
    return 2.0 * math.prod(hlo.shape(i.type)) * summed
  if i.opcode != "convolution":
    return 0.0
  left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.arguments).groups()
  lhs, rhs, result = (dict(zip(labels, hlo.shape(x))) for labels, x in (
    (left, types[i.operands[0]]), (right, types[i.operands[1]]), (out, i.type)))
  window = re.search(r"window=\{(.*?)\}", i.arguments)
  fields = {name: value.split("x") for name, value in (
    field.split("=") for field in (window[1].split() if window else ()))}

  def field(name, axis, default):
    return fields[name][axis] if name in fields else default

  pairs = math.prod(_meetings(
    lhs[str(axis)], rhs[str(axis)], result[str(axis)], int(field("pad", axis, "0").split("_")[0]),
    *(int(field(name, axis, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate")))
    for axis in range(len(left) - 2))
  return 2.0 * result["b"] * result["f"] * rhs["i"] * pairs


def _meetings(inputs: int, kernel: int, outputs: int, low: int, stride: int, between: int,
              dilation: int) -> int:
  """How many pairs of a kernel's element and an output meet an element of the input, on an axis."""
  return sum(
    position % between == 0 and 0 <= position // between < inputs
    for o in range(outputs) for k in range(kernel)
    for position in [o * stride + k * dilation - low])
