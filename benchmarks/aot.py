"""The tables of `aot.md`: the paper's training steps compiled for pods of 256 TPU chips.

  python benchmarks/aot.py --out=aot.jsonl [--only=v5p] [--stage=pretrain] [--families | --full]

compiles what the file does not hold yet, one program after the other, and prints the table, with
`--families` that of the steps of distillation. With `--full` the compiler makes its full effort, as
in training, which takes several times as long, and the table says what of the collectives is
hidden. It takes hours on two CPU cores, and a few GB of memory. Needs
`pip install -e .[tpu]`.
"""

import argparse
import collections
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

# Topology, and what its chips need beside the recipe: those of 32 GB keep less, and the two devices
# of a TPU7x chip share the work on an image.
SMALL = ["train.prototype_chunks=8"]
CHIPS = {
  "v4": ("v4:8x8x4", SMALL), "v5p": ("v5p:8x8x4", []), "v6e": ("v6e:16x16", SMALL),
  "tpu7x": ("tpu7x:4x8x8", ["mesh.tensor=2"]),
}
TEXT = "dino.txt"
# Recipe, resolutions, and what those of 32 GB need on top.
STAGES = {
  "pretrain": ("vit7b", 1, ["train.remat=full"]),
  "Gram": ("vit7b_gram", 1, []),
  "high resolution": ("vit7b_highres", 5, ["train.remat=offload"]),
  "ViT-L IN-1k": ("vitl16_in1k", 1, []),
  TEXT: ("dinotxt_vitl16", 1, []),
}
# Students of the 7B, which learn together.
FAMILIES = {
  "ViTs": ("vits16", "vits16plus", "vitb16", "vitl16", "vith16plus"),
  "ConvNeXts": ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large"),
}
TEACHER = "configs/vit7b_highres.py"
# The teacher is cut as it was trained; KoLeo compares the 16 images of a device.
OF_FAMILIES = ["mesh.data=4", "mesh.fsdp=64", "koleo.group=16"]


class Program(NamedTuple):
  """A row: the stage or family, the resolution or the part of the step, and the chip."""

  stage: str
  part: int | str
  chip: str


def programs(chips: list[str], families: bool) -> Iterator[Program]:
  if families:
    for chip in chips:
      for name, students in FAMILIES.items():
        yield from (Program(name, part, chip) for part in ("teacher", *students))
    return
  for stage, (_, resolutions, _) in STAGES.items():
    for resolution in range(resolutions):
      yield from (Program(stage, resolution, chip) for chip in chips)


def settings_of(chip: str, stage: str) -> list[str]:
  """What is changed of a recipe."""
  if stage in FAMILIES:
    return OF_FAMILIES
  if stage == TEXT:
    return []
  if stage == "ViT-L IN-1k":  # KoLeo compares the images of a device
    return ["koleo.group=4" if chip == "tpu7x" else "koleo.group=8"]
  return CHIPS[chip][1] + (STAGES[stage][2] if CHIPS[chip][1] == SMALL else [])


def compile_row(program: Program, full: bool = False, changed: list[str] = ()) -> dict:
  """The report of `dinov3_jax.aot`, without `full` of a program made with less effort."""
  stage, part, chip = program
  if stage in FAMILIES:
    chosen = [f"--config=configs/distill_family.py:{','.join(FAMILIES[stage])}",
              f"--teacher={TEACHER}", f"--part={part}"]
  else:
    chosen = [f"--config=configs/{STAGES[stage][0]}.py", f"--resolution={part}"]
  done = subprocess.run(
    [sys.executable, "-m", "dinov3_jax.aot", *chosen, *([] if full else ["--fast"]), "--json",
     f"--topology={CHIPS[chip][0]}",
     *(f"--config.{setting}" for setting in (*settings_of(chip, stage), *changed))],
    capture_output=True, text=True)
  if done.returncode:
    return {"error": (done.stderr.strip() or "killed").splitlines()[-1]}
  return json.loads(done.stdout)


def line(program: Program, r: dict) -> str:
  """A row of the table."""
  stage, part, chip = program
  if "error" in r:
    return f"| {stage} | {chip} | {r['error']} |"
  giga = lambda size: f"{size / 2**30:.1f}"
  sent, least = sum(r["sent"].values()), sum(r["least"].values())
  kinds = [giga(r["sent"].get(kind, 0)) for kind in ("all-gather", "reduce-scatter", "all-reduce")]
  if stage in FAMILIES:
    first = [f"| {stage}: {part}", chip, giga(r["beside"])]
    flops = [f"{r['flops_executed'] / 1e12:.1f}", f"{r['seconds_at_peak']:.3f}"]
  else:
    first = [
      f"| {stage} {'/'.join(str(size) for size in r['crops'] if size)}", chip,
      "x".join(map(str, r["mesh"].values())),
      ", ".join(f"`{s}`" for s in settings_of(chip, stage) if not s.startswith("mesh"))]
    flops = [f"{r['flops_full'] / 1e12:.0f}", f"{r['flops_executed'] / 1e12:.0f}",
             f"{r['seconds_at_peak']:.2f}"]
  return " | ".join([
    *first, giga(r["arguments"]), giga(r["temporaries"]),
    f"{giga(r['peak'])} of {giga(r['memory'])}", f"{1 - r['peak'] / r['memory']:.0%}", *flops,
    *kinds, f"{sent / least:.2f}", f"{r['compile_seconds']:.0f} |"])


def schedule_line(program: Program, r: dict) -> str:
  """A row of the table of schedules."""
  stage, _, chip = program
  name = f"| {stage} {'/'.join(str(size) for size in r['crops'] if size)} | {chip} "
  sending, exposed = (collections.Counter(r[key]) for key in ("sending", "exposed"))
  kinds = [f"{sending[kind]:.2f} | {exposed[kind] / max(sending[kind], 1e-12):.0%}"
           for kind in ("all-gather", "reduce-scatter", "all-reduce")]
  return name + " | ".join([
    f"| {r['peak'] / 2**30:.1f}", f"{r['computing']:.2f}", *kinds,
    f"{r['computing'] + sending.total():.2f}", f"{r['computing'] + exposed.total():.2f}",
    f"{r['compile_seconds']:.0f} |"])


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, default="aot.jsonl")
  parser.add_argument("--only", choices=CHIPS, nargs="*")
  parser.add_argument("--families", action="store_true", help="for v5p and v6e, unless --only says "
                      "others")
  parser.add_argument("--stage", choices=STAGES, help="this alone")
  parser.add_argument("--full", action="store_true", help="with the compiler's full effort")
  parser.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE",
                      help="changed in every recipe, such as train.matmul=int8")
  args = parser.parse_args()
  chips = args.only or (["v5p", "v6e"] if args.families else list(CHIPS))
  made, rows = [args.full, args.set], {}  # a file may have rows of all kinds
  if args.out.exists():
    for text in args.out.read_text().splitlines():
      key, kind, report = json.loads(text)
      if kind == made:
        rows[Program(*key)] = report
  for program in programs(chips, args.families):
    if args.stage not in (None, program.stage):
      continue
    if program not in rows:
      rows[program] = compile_row(program, args.full, args.set)
      with args.out.open("a") as file:
        file.write(json.dumps([program, made, rows[program]]) + "\n")
  if args.full:
    print("| step, px | chip | peak | computing, s | gathers | exposed | scatters | exposed | sums "
          "| exposed | in turn, s | overlapped, s | compiled, s |")
    print("|---|---" + "|---:" * 11 + "|")
    for program, report in rows.items():
      print(schedule_line(program, report) if "error" not in report else line(program, report))
    return
  if args.families:
    print("| family: program | chip | beside | arguments | temporaries | peak | spare | TFLOP "
          "executed | s at peak | gathers | scatters | sums | of the least | compiled, s |")
    print("|---|---" + "|---:" * 12 + "|")
  else:
    print("| step, px | chip | mesh | changed | arguments | temporaries | peak | spare "
          "| TFLOP full | executed | s at peak | gathers | scatters | sums | of the least "
          "| compiled, s |")
    print("|---|---|---|---" + "|---:" * 12 + "|")
  for program, report in rows.items():
    if (program.stage in FAMILIES) == args.families:
      print(line(program, report))


if __name__ == "__main__":
  main()
