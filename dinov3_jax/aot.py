"""Compiles the training step for a TPU topology, on a machine that has none:

  python -m dinov3_jax.aot --config=configs/vit7b.py --topology=v5p:8x8x4

and says what a chip would hold, compute and send in a step. Any setting can be changed, as in
training. `--resolution=2` compiles one entry of the lists of crop sizes alone, `--slices=2` is for
two such topologies, `--json` prints an object for each resolution, `--hlo=FILE` keeps the program.
`--fast` asks the compiler for less effort: of the 7B's step, it takes a quarter of the time, finds
the same collectives, and memory within 1 %. Needs `pip install -e .[tpu]`.
"""

import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from dinov3_jax import arguments
from dinov3_jax.main import UsageError, asks_for_help, fail, read

SPARE = 0.1  # of the memory, below which a step does not count as fitting


@dataclasses.dataclass(frozen=True)
class Report:
  """A compiled step; memory in bytes and operations are of one device, as JAX counts them.

  Attributes:
    chips, devices, device_kind: of the topology; a chip of TPU v7x is two devices.
    mesh: sizes by axis.
    crops: global, local and Gram sizes in pixels, the last 0 without.
    batch_size: images over all devices.
    arguments, temporaries, peak, memory: what state and batch take, what the step takes besides
      where it takes the most, their sum, and what there is.
    flops_full, flops_executed: of the model in a step, see `train.flops`.
    seconds_at_peak: for the executed operations, were the device never idle.
    sent, least: bytes by kind of collective, in a step, and the least for this layout.
    compile_seconds: lowering and compiling.
  """

  chips: int
  devices: int
  device_kind: str
  mesh: dict[str, int]
  crops: tuple[int, int, int]
  batch_size: int
  arguments: int
  temporaries: int
  peak: int
  memory: int
  flops_full: float
  flops_executed: float
  seconds_at_peak: float
  sent: dict[str, float]
  least: dict[str, float]
  compile_seconds: float

  @property
  def spare(self) -> float:
    """Share of the memory that stays free at the peak."""
    return 1 - self.peak / self.memory

  @property
  def excess(self) -> float:
    """Bytes sent over the least possible."""
    return sum(self.sent.values()) / max(sum(self.least.values()), 1)


def define() -> flags.FlagValues:
  """The flags of the command, without values."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "a recipe: a file, or the name of one of this "
                                  "project", flag_values=values)
  flags.DEFINE_string("topology", None, "as v5p:8x8x4", flag_values=values)
  flags.DEFINE_integer("slices", 1, "how many such topologies, 1 by default", 1,
                       flag_values=values)
  flags.DEFINE_integer("resolution", None, "compile one entry of the lists of crop sizes alone, "
                       "from 0 on", 0, flag_values=values)
  flags.DEFINE_bool("fast", False, "compile with less effort", flag_values=values)
  flags.DEFINE_bool("json", False, "print an object for each resolution", flag_values=values)
  flags.DEFINE_string("hlo", None, "a file for the compiled program", flag_values=values)
  return values


def parser() -> arguments.Parser:
  """What shows the flags; `parse` reads them."""
  made, values = arguments.Parser("aot", __doc__), define()
  arguments.add_flags(made, "what is compiled", values, config="RECIPE", topology="NAME",
                      slices="N", resolution="N", fast=None)
  made.add_argument("--config.KEY", metavar="VALUE", help="any setting of the recipe")
  arguments.add_flags(made, "what comes out", values, json=None, hlo="FILE")
  return made


def parse(argv: list[str]) -> flags.FlagValues:
  """The command's flags: config, topology, slices, resolution (None: all), fast, json, hlo."""
  values = define()
  rest = read(values, argv)
  if rest or not values.config or not values.topology:
    raise UsageError("usage: python -m dinov3_jax.aot --config=configs/vit7b.py "
                     "--topology=v5p:8x8x4 [--slices=N] [--resolution=N] [--fast] [--json] "
                     "[--hlo=FILE] [--config.KEY=VALUE ...]")
  count = len(values.config.crops.global_sizes)
  if values.resolution is not None and values.resolution >= count:
    raise UsageError(f"there is no resolution {values.resolution}: the config has {count}, "
                     "from 0 on")
  if values.hlo and values.resolution is None and count > 1:
    raise UsageError(f"--hlo keeps one program, and this config has {count}: add --resolution=N")
  return values


def topology_devices(name: str, slices: int = 1) -> list:
  """The devices of a TPU topology, or of several alike that only a data centre's network joins.

  Raises:
    ValueError: libtpu is missing, or does not know the name.
  """
  from jax.experimental import topologies

  from dinov3_jax.train import compiler
  # On a v4 the two cores of a chip count as one device, as where it is let.
  options = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
  if slices > 1:
    options["num_slices"] = slices
  try:
    return list(topologies.get_topology_desc(name, "tpu", **options).devices)
  except Exception as error:
    if "libtpu" in str(error) and ("not found" in str(error) or "No module" in str(error)):
      raise ValueError("compiling for TPUs needs libtpu: pip install -e .[tpu]") from error
    raise ValueError(f"libtpu knows no topology {name!r}; it wants a generation and the chips "
                     "along each axis, such as v4:8x8x4, v5p:8x8x4, v6e:16x16 or tpu7x:4x4x8 "
                     f"({compiler.reason(error)})") from error


def compile_step(config: ConfigDict, devices: list, resolution: int = 0):
  """The compiled step, and the `Report` about it.

  Raises:
    ValueError: settings that do not fit together or these devices, or a step that does not fit into
      their memory.
  """
  import jax

  from dinov3_jax.train import compiler, sharding
  from dinov3_jax.train.collectives import bytes_by_kind, collectives, least_bytes
  from dinov3_jax.train.flops import CHIPS, step_flops
  from dinov3_jax.train.prepare import jit_step
  from dinov3_jax.train.settings import check_settings
  from dinov3_jax.train.state import init_state

  check_settings(config)
  if config.distill.teacher:
    raise ValueError("a step of distillation cannot be compiled ahead of time: its teacher is "
                     "found only when a run starts; with --config.distill.teacher= the student's "
                     "own training is compiled, without what the teacher takes")
  mesh = sharding.make_mesh(config, devices)
  kind = devices[0].device_kind
  if kind not in CHIPS:
    raise ValueError(f"no figures of {kind} are known: add them to CHIPS in train/flops.py")
  chip, count = CHIPS[kind], len(devices)
  batch = sharding.abstract_batch(config, mesh, resolution)
  state = sharding.abstract_state(mesh, functools.partial(init_state, config))
  sharding.check_memory(state, chip.memory / chip.devices)
  began = time.perf_counter()
  lowered = jit_step(config, mesh, state).lower(state, batch)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(compiler.explain(error)) from error
  seconds = time.perf_counter() - began

  memory = compiled.memory_analysis()
  arguments, peak = memory.argument_size_in_bytes, memory.peak_memory_in_bytes
  flops = step_flops(config, sharding.data_shards(mesh), resolution)
  crops = config.crops
  sizes = (crops.global_sizes, crops.local_sizes, crops.gram_sizes)
  return compiled, Report(
    chips=count // chip.devices, devices=count, device_kind=kind, mesh=dict(mesh.shape),
    crops=tuple(size[resolution] for size in sizes), batch_size=config.train.batch_size,
    arguments=arguments, temporaries=peak - arguments, peak=peak,
    memory=int(chip.memory / chip.devices), flops_full=flops.full / count,
    flops_executed=flops.executed / count,
    seconds_at_peak=flops.executed / count * chip.devices / chip.flops,
    sent=bytes_by_kind(collectives(compiled.as_text(), count)),
    least=least_bytes(config, state.student, mesh, resolution), compile_seconds=seconds)


def describe(r: Report) -> str:
  """A report for a person."""
  giga = lambda size: f"{size / 2**30:.2f} GiB"
  mesh = " ".join(f"{axis}={size}" for axis, size in r.mesh.items())
  lines = [
    f"{r.chips} x {r.device_kind}, {r.devices} devices, mesh {mesh}; of each device:",
    f"crops {r.crops[0]} and {r.crops[1]} px" + (f", Gram {r.crops[2]} px" if r.crops[2] else "")
    + f"; {r.batch_size} images a step, {r.batch_size / r.devices:g} a device",
    f"  arguments    {giga(r.arguments)}",
    f"  temporaries  {giga(r.temporaries)}",
    f"  peak         {giga(r.peak)} of {giga(r.memory)}, {r.spare:.0%} to spare"
    + ("" if r.spare >= SPARE else ": TOO LITTLE"),
    f"  model        {r.flops_full / 1e12:.1f} TFLOP, of which drop-path executes "
    f"{r.flops_executed / 1e12:.1f}: {r.seconds_at_peak:.3f} s at the device's peak",
  ]
  for kind in sorted(r.sent.keys() | r.least.keys()):
    lines.append(f"  {kind:<20} sends {giga(r.sent.get(kind, 0))}, at least "
                 f"{giga(r.least.get(kind, 0))}")
  return "\n".join([*lines, f"  all sent     {r.excess:.2f} times the least",
                    f"  compiled in  {r.compile_seconds:.0f} s"])


def main() -> int:
  """Runs the command; returns its exit code."""
  if asks_for_help(sys.argv):
    parser().print_help()
    return 0
  try:
    values = parse(sys.argv)
  except UsageError as error:
    return fail(error, 2)
  if values.fast:
    os.environ["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = "-1"
  # No TPU is opened: no question to the cloud's metadata, and no lock for one process alone.
  for name, value in dict(
      JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
      TPU_ACCELERATOR_TYPE="v5p-8", TPU_WORKER_HOSTNAMES="localhost", TPU_STDERR_LOG_LEVEL="3"
  ).items():
    os.environ.setdefault(name, value)
  crops = values.config.crops
  sizes = list(zip(crops.global_sizes, crops.local_sizes, crops.gram_sizes))
  chosen = range(len(sizes)) if values.resolution is None else [values.resolution]
  try:
    devices = topology_devices(values.topology, values.slices)
    for i in chosen:
      compiled, report = compile_step(values.config, devices, i)
      if values.hlo:
        Path(values.hlo).write_text(compiled.as_text())
      shown = json.dumps(dataclasses.asdict(report)) if values.json else describe(report)
      print(shown, flush=True)
  except (ValueError, OSError) as error:
    return fail(error)
  return 0


if __name__ == "__main__":
  sys.exit(main())
