"""Training steps compiled ahead of time, for devices that are not there, and what they take."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov3_jax.costs.collectives import (
  bytes_by_kind,
  collectives,
  least_bytes,
  least_bytes_of_targets,
)
from dinov3_jax.costs.flops import CHIPS, Chip, StepFlops, step_flops, targets_flops
from dinov3_jax.costs.schedule import Schedule, link_bandwidth, read_schedule
from dinov3_jax.models.partition import param_sharding
from dinov3_jax.train import compiler, sharding, teacher
from dinov3_jax.train.family import check_family, members
from dinov3_jax.train.prepare import jit_step
from dinov3_jax.train.settings import check_settings
from dinov3_jax.train.state import init_state
from dinov3_jax.train.targets import make_targets

TEACHER = "teacher"  # the name of that part


@dataclasses.dataclass(frozen=True)
class Report:
  """A compiled program; memory in bytes and operations are of one device, as JAX counts them.

  Attributes:
    part: of a step of distillation, "teacher" or a student's name; "" where a step is one program.
    chips, devices, device_kind: of the topology; a chip of TPU v7x is two devices.
    mesh: sizes by axis.
    crops: global, local and Gram sizes in pixels, the last 0 without.
    batch_size: images over all devices.
    beside: what the teacher and other students hold meanwhile.
    arguments, temporaries, peak, memory: what state and batch take, what the step takes besides
      where it takes the most, their sum with `beside`, and what there is.
    flops_full, flops_executed: of the model in a step, see `costs.flops`.
    seconds_at_peak: for the executed operations, were the device never idle.
    sent, least: bytes by kind of collective, in a step, and the least for this layout.
    computing, sending, exposed: of a step's estimated time, see `costs.schedule`, the seconds in
      which the device computes, those in which its links are busy, by kind of collective, and those
      of the latter for which it waits; all empty where nothing is known of the links between the
      devices, or a data centre's network joins them.
    compile_seconds: lowering and compiling.
  """

  part: str
  chips: int
  devices: int
  device_kind: str
  mesh: dict[str, int]
  crops: tuple[int, int, int]
  batch_size: int
  beside: int
  arguments: int
  temporaries: int
  peak: int
  memory: int
  flops_full: float
  flops_executed: float
  seconds_at_peak: float
  sent: dict[str, float]
  least: dict[str, float]
  computing: float
  sending: dict[str, float]
  exposed: dict[str, float]
  compile_seconds: float

  @property
  def seconds_in_turn(self) -> float:
    """A step's time if the device either computed or sent."""
    return self.computing + sum(self.sending.values())

  @property
  def seconds_overlapped(self) -> float:
    """A step's time by the program's schedule."""
    return self.computing + sum(self.exposed.values())

  @property
  def gathers_exposed(self) -> float:
    """Share of the gathers' time for which the device waits."""
    return self.exposed.get("all-gather", 0) / max(self.sending.get("all-gather", 0), 1e-12)

  @property
  def spare(self) -> float:
    """Share of the memory that stays free at the peak."""
    return 1 - self.peak / self.memory

  @property
  def excess(self) -> float:
    """Bytes sent over the least possible."""
    return sum(self.sent.values()) / max(sum(self.least.values()), 1)


@dataclasses.dataclass(frozen=True)
class Part:
  """A program of a step.

  Attributes:
    name: as `Report.part`.
    lower: traces it for its devices.
    kept: what it holds from step to step, as shapes with their layout.
    shared: what of `kept` other programs take as an argument, too.
    flops, least: see `Report`; of all devices and of one.
  """

  name: str
  lower: Callable[[], jax.stages.Lowered]
  kept: Any
  shared: Any
  flops: StepFlops
  least: dict[str, float]


def parts(config: ConfigDict, mesh: Mesh, resolution: int = 0,
          taught_by: ConfigDict | None = None) -> list[Part]:
  """The programs of a step: one, or with a frozen teacher that one's and each student's.

  Args:
    config: of a run or of a family.
    mesh: of the devices.
    resolution: which entry of the lists of crop sizes.
    taught_by: the settings with which the frozen teacher was trained, if there is one.

  Raises:
    ValueError: settings that do not fit together, or these devices.
  """
  if taught_by is None and config.distill.teacher:
    raise ValueError("a step of distillation needs to know its teacher's network: add the recipe "
                     "with which that was trained, such as --teacher=configs/vit7b_highres.py")
  if taught_by is not None and not config.distill.teacher:
    raise ValueError("--teacher is for recipes that distil: this one has no distill.teacher")
  configs = members(config) if list(config.students.keys()) else {
    "student" if taught_by else "": config}
  for each in configs.values():
    check_settings(each)
  shared = next(iter(configs.values()))
  batch = sharding.abstract_batch(shared, mesh, resolution)
  options = compiler.options(mesh.devices.flat[0])
  result, frozen = [], None
  if taught_by is not None:
    check_family(configs, taught_by)
    frozen = teacher.abstract(taught_by, mesh, shared.train.dtype)
    targets = jax.jit(make_targets(shared, taught_by, mesh), compiler_options=options)
    made = _placed(jax.eval_shape(targets, frozen, batch), frozen, mesh)
    flops = targets_flops(shared, taught_by, resolution)
    result.append(Part(
      TEACHER, functools.partial(targets.lower, frozen, batch), frozen, made["prototypes"],
      StepFlops(flops, flops),
      least_bytes_of_targets(shared, taught_by, frozen, mesh, resolution)))
    batch = batch | dict(targets=made)
  for name, each in configs.items():
    state = sharding.abstract_state(mesh, functools.partial(init_state, each))
    result.append(Part(
      name, functools.partial(jit_step(each, mesh, state).lower, state, batch), state, (),
      step_flops(each, sharding.data_shards(mesh), resolution, taught_by),
      least_bytes(each, state.student, mesh, resolution, frozen)))
  return result


def sides(config: ConfigDict) -> list[tuple[int, int, int]]:
  """The global, local and Gram crops' sides at every resolution, in pixels, 0 where there are
  none; of text, whose images have one size, that."""
  if "crops" not in config:
    return [(config.images.size, 0, 0)]
  crops = config.crops
  return list(zip(crops.global_sizes, crops.local_sizes, crops.gram_sizes))


def _placed(targets: dict, frozen: Any, mesh: Mesh) -> dict:
  """The shapes of targets, laid out as the teacher's program leaves them."""
  layout = param_sharding(mesh, frozen)
  rows = sharding.batch_sharding(mesh)
  put = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  prototypes = {name: put(x, layout[name]["last_layer"]["kernel"])
                for name, x in targets["prototypes"].items()}
  return {name: put(x, rows) for name, x in targets.items() if name != "prototypes"} | dict(
    prototypes=prototypes)


def compile_parts(config: ConfigDict, devices: list, resolution: int = 0,
                  taught_by: ConfigDict | None = None, only: str | None = None,
                  make: Callable[[ConfigDict, Mesh], list[Part]] | None = None
                  ) -> Iterator[tuple[jax.stages.Compiled, Report]]:
  """The compiled programs of a step, one after the other, each with the `Report` about it.

  Args:
    config: of a run or of a family.
    devices: of a topology.
    resolution: which entry of the lists of crop sizes.
    taught_by: the settings with which the frozen teacher was trained, if there is one.
    only: the name of one part; None: all.
    make: what makes the programs of another objective; None: `parts`.

  Raises:
    ValueError: settings that do not fit together or these devices, or a step that does not fit into
      their memory.
  """
  mesh = sharding.make_mesh(config, devices)
  kind = devices[0].device_kind
  if kind not in CHIPS:
    raise ValueError(f"no figures of {kind} are known: add them to CHIPS in costs/flops.py")
  chip, count = CHIPS[kind], len(devices)
  memory = int(chip.memory / chip.devices)
  all_parts = make(config, mesh) if make else parts(config, mesh, resolution, taught_by)
  names = [part.name for part in all_parts]
  if only is not None and only not in names:
    raise ValueError(f"there is no part {only!r}: take one of {', '.join(names)}")
  kept = {part.name: sharding.bytes_held(part.kept) for part in all_parts}
  sharding.check_memory([part.kept for part in all_parts], memory)
  for part in all_parts:
    if only not in (None, part.name):
      continue
    began = time.perf_counter()
    lowered = part.lower()
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      raise ValueError(compiler.explain(error)) from error
    seconds = time.perf_counter() - began
    taken = compiled.memory_analysis()
    beside = sum(kept.values()) - kept[part.name]
    if part is not all_parts[0]:  # the teacher's prototypes are an argument of every student's
      beside -= sharding.bytes_held(all_parts[0].shared)
    text, executed = compiled.as_text(), part.flops.executed / count
    schedule = _schedule(text, list(mesh.devices.flat), chip)
    arguments, peak = taken.argument_size_in_bytes, taken.peak_memory_in_bytes
    yield compiled, Report(
      part=part.name, chips=count // chip.devices, devices=count, device_kind=kind,
      mesh=dict(mesh.shape), batch_size=config.train.batch_size,
      crops=sides(config)[resolution],
      beside=beside, arguments=arguments, temporaries=peak - arguments, peak=peak + beside,
      memory=memory, flops_full=part.flops.full / count, flops_executed=executed,
      seconds_at_peak=executed * chip.devices / chip.flops,
      sent=bytes_by_kind(collectives(text, count)), least=part.least,
      computing=schedule.computing, sending=schedule.sending, exposed=schedule.exposed,
      compile_seconds=seconds)


def _schedule(text: str, devices: list, chip: Chip) -> Schedule:
  """That of a program on these devices, in their order; see `Report`."""
  if not chip.link or len({getattr(device, "slice_index", 0) for device in devices}) > 1:
    return Schedule(0.0, [], {})
  return read_schedule(text, len(devices), chip,
                       link_bandwidth(chip, [tuple(device.coords) for device in devices]))
