"""Compiles the training step for a TPU topology, on a machine that has none:

  python -m dinov3_jax.aot --config=configs/vit7b.py --topology=v5p:8x8x4

and says what a chip would hold, compute and send in a step. Any setting can be changed, as in
training. `--resolution=2` compiles one entry of the lists of crop sizes alone, `--slices=2` is for
two such topologies, `--json` prints an object for each resolution, `--hlo=FILE` keeps the program.
Where a frozen teacher is distilled, `--teacher=configs/vit7b_highres.py` is the recipe of its
network; its program and each student's are told of one by one, or with `--part=NAME` one alone.
`--fast` asks the compiler for less effort: of the 7B's step, it takes a quarter of the time, finds
the same collectives, and memory within 1 %, but then less goes on beside other work than in
training. Needs `pip install -e .[tpu]`.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dinov3_jax import arguments
from dinov3_jax.main import UsageError, asks_for_help, fail, read

SPARE = 0.1  # of the memory, below which a step does not count as fitting


def define() -> flags.FlagValues:
  """The flags of the command, without values."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "a recipe: a file, or the name of one of this "
                                  "project", flag_values=values)
  config_flags.DEFINE_config_file("teacher", None, "the recipe of a frozen one",
                                  flag_values=values)
  flags.DEFINE_string("topology", None, "as v5p:8x8x4", flag_values=values)
  flags.DEFINE_integer("slices", 1, "how many such topologies, 1 by default", 1,
                       flag_values=values)
  flags.DEFINE_integer("resolution", None, "compile one entry of the lists of crop sizes alone, "
                       "from 0 on", 0, flag_values=values)
  flags.DEFINE_string("part", None, "compile the teacher or one student alone, by its name",
                      flag_values=values)
  flags.DEFINE_bool("fast", False, "compile with less effort", flag_values=values)
  flags.DEFINE_bool("json", False, "print an object for each resolution", flag_values=values)
  flags.DEFINE_string("hlo", None, "a file for the compiled program", flag_values=values)
  return values


def parser() -> arguments.Parser:
  """What shows the flags; `parse` reads them."""
  made, values = arguments.Parser("aot", __doc__), define()
  arguments.add_flags(made, "what is compiled", values, config="RECIPE", teacher="RECIPE",
                      topology="NAME", slices="N", resolution="N", part="NAME", fast=None)
  made.add_argument("--config.KEY", metavar="VALUE", help="any setting of the recipe")
  arguments.add_flags(made, "what comes out", values, json=None, hlo="FILE")
  return made


def parse(argv: list[str]) -> flags.FlagValues:
  """The command's flags: config, teacher, topology, slices, resolution and part (None: all), fast,
  json, hlo."""
  values = define()
  rest = read(values, argv)
  if rest or not values.config or not values.topology:
    raise UsageError("usage: python -m dinov3_jax.aot --config=configs/vit7b.py "
                     "--topology=v5p:8x8x4 [--teacher=RECIPE] [--slices=N] [--resolution=N] "
                     "[--part=NAME] [--fast] [--json] [--hlo=FILE] [--config.KEY=VALUE ...]")
  count = len(values.config.crops.global_sizes) if "crops" in values.config else 1
  if values.resolution is not None and values.resolution >= count:
    raise UsageError(f"there is no resolution {values.resolution}: the config has {count}, "
                     "from 0 on")
  if values.hlo and values.resolution is None and count > 1:
    raise UsageError(f"--hlo keeps one program, and this config has {count}: add --resolution=N")
  if values.hlo and values.teacher and values.part is None:
    raise UsageError("--hlo keeps one program, and a distillation has several: add --part=NAME")
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


def describe(r) -> str:
  """A `train.ahead.Report` for a person."""
  giga = lambda size: f"{size / 2**30:.2f} GiB"
  mesh = " ".join(f"{axis}={size}" for axis, size in r.mesh.items())
  lines = [
    f"{r.chips} x {r.device_kind}, {r.devices} devices, mesh {mesh}; of each device:",
    (f"crops {r.crops[0]} and {r.crops[1]} px" if r.crops[1] else f"images of {r.crops[0]} px")
    + (f", Gram {r.crops[2]} px" if r.crops[2] else "")
    + f"; {r.batch_size} images a step, {r.batch_size / r.devices:g} a device",
    *([f"  {r.part}, beside {giga(r.beside)} of the others"] if r.part else []),
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
  if r.computing:
    lines.append(
      f"  a step       at least {r.seconds_overlapped:.3f} s by its schedule, "
      f"{r.seconds_in_turn:.3f} s if nothing overlapped; {r.gathers_exposed:.0%} of the gathers' "
      f"{r.sending.get('all-gather', 0):.3f} s are waited for")
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
  try:
    devices = topology_devices(values.topology, values.slices)
    from dinov3_jax.text.ahead import text_parts
    from dinov3_jax.train.ahead import compile_parts, sides
    make = text_parts if "text" in values.config else None
    chosen = (range(len(sides(values.config))) if values.resolution is None else
              [values.resolution])
    for i in chosen:
      for compiled, report in compile_parts(values.config, devices, i, values.teacher, values.part,
                                            make):
        if values.hlo:
          Path(values.hlo).write_text(compiled.as_text())
        shown = json.dumps(dataclasses.asdict(report)) if values.json else describe(report)
        print(shown, flush=True)
  except (ValueError, OSError) as error:
    return fail(error)
  return 0


if __name__ == "__main__":
  sys.exit(main())
