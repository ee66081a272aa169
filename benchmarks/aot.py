"""The table of `aot.md`: the paper's training steps compiled for pods of 256 TPU chips.

  python benchmarks/aot.py --out=aot.jsonl [--only=v5p]

compiles what the file does not hold yet, one program after the other, and prints the table. It
takes hours on two CPU cores, and a few GB of memory. Needs `pip install -e .[tpu]`.
"""

import argparse
import json
import pathlib
import subprocess
import sys

# Topology, and what its chips need beside the recipe: those of 32 GB keep less, and the two devices
# of a TPU7x chip share the work on an image.
SMALL = ["train.prototype_chunks=8"]
CHIPS = {
  "v4": ("v4:8x8x4", SMALL), "v5p": ("v5p:8x8x4", []), "v6e": ("v6e:16x16", SMALL),
  "tpu7x": ("tpu7x:4x8x8", ["mesh.tensor=2"]),
}
# Recipe, resolutions, and what those of 32 GB need on top.
STAGES = {
  "pretrain": ("vit7b", 1, ["train.remat=full"]),
  "Gram": ("vit7b_gram", 1, []),
  "high resolution": ("vit7b_highres", 5, ["train.remat=offload"]),
  "ViT-L IN-1k": ("vitl16_in1k", 1, []),
}


def settings_of(chip: str, stage: str) -> list[str]:
  """What is changed of a recipe."""
  if stage == "ViT-L IN-1k":  # KoLeo compares the images of a device
    return ["koleo.group=4" if chip == "tpu7x" else "koleo.group=8"]
  return CHIPS[chip][1] + (STAGES[stage][2] if CHIPS[chip][1] == SMALL else [])


def compile_row(chip: str, stage: str, resolution: int) -> dict:
  """The report of `dinov3_jax.aot`."""
  recipe, topology = STAGES[stage][0], CHIPS[chip][0]
  done = subprocess.run(
    [sys.executable, "-m", "dinov3_jax.aot", f"--config=configs/{recipe}.py", "--fast", "--json",
     f"--topology={topology}", f"--resolution={resolution}",
     *(f"--config.{setting}" for setting in settings_of(chip, stage))],
    capture_output=True, text=True)
  if done.returncode:
    return {"error": (done.stderr.strip() or "killed").splitlines()[-1]}
  return json.loads(done.stdout)


def line(chip: str, stage: str, r: dict) -> str:
  """A row of the table."""
  if "error" in r:
    return f"| {stage} | {chip} | {r['error']} |"
  giga = lambda size: f"{size / 2**30:.1f}"
  sent, least = sum(r["sent"].values()), sum(r["least"].values())
  kinds = [giga(r["sent"].get(kind, 0)) for kind in ("all-gather", "reduce-scatter", "all-reduce")]
  return " | ".join([
    f"| {stage} {'/'.join(str(size) for size in r['crops'] if size)}", chip,
    "x".join(map(str, r["mesh"].values())),
    ", ".join(f"`{s}`" for s in settings_of(chip, stage) if not s.startswith("mesh")),
    giga(r["arguments"]), giga(r["temporaries"]),
    f"{giga(r['peak'])} of {giga(r['memory'])}", f"{1 - r['peak'] / r['memory']:.0%}",
    f"{r['flops_full'] / 1e12:.0f}", f"{r['flops_executed'] / 1e12:.0f}",
    f"{r['seconds_at_peak']:.2f}", *kinds, f"{sent / least:.2f}",
    f"{r['compile_seconds']:.0f} |"])


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, default="aot.jsonl")
  parser.add_argument("--only", choices=CHIPS, nargs="*", default=list(CHIPS))
  args = parser.parse_args()
  rows = {}
  if args.out.exists():
    for text in args.out.read_text().splitlines():
      key, report = json.loads(text)
      rows[tuple(key)] = report
  for stage, (_, resolutions, _) in STAGES.items():
    for resolution in range(resolutions):
      for chip in args.only:
        key = (stage, resolution, chip)
        if key not in rows:
          rows[key] = compile_row(chip, stage, resolution)
          with args.out.open("a") as file:
            file.write(json.dumps([key, rows[key]]) + "\n")
  print("| step, px | chip | mesh | changed | arguments | temporaries | peak | spare | TFLOP full "
        "| executed | s at peak | gathers | scatters | sums | of the least | compiled, s |")
  print("|---|---|---|---" + "|---:" * 12 + "|")
  for (stage, _, chip), report in rows.items():
    print(line(chip, stage, report))


if __name__ == "__main__":
  main()
