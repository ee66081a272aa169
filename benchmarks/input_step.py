"""The whole training step, images and all, with colours on the host and on the device.

  python benchmarks/input_step.py [--recipes quickstart vits16] [--steps 4] [--rounds 5]

The quickstart as it is, but with the reference's colours, and `configs/vits16.py` at 8 images a
step in float32, with 64 JPEGs of 500 x 375 and two workers. Both settings take turns, some steps
each, with the same state and the same compiled step; as in training, the next batch is fetched
while a step runs. CPU time is that of all processes. Run it on a machine that does nothing else.
"""

import argparse
import functools
import io
import multiprocessing
import os
import pathlib
import tempfile
import time

import jax
import numpy as np
from PIL import Image

from configs import quickstart, vits16
from dinov3_jax.train import prepare
from dinov3_jax.train.inputs import fetch, open_pipeline
from dinov3_jax.train.state import init_state

PLACES = ("host", "device")


def photographs(folder: pathlib.Path, count: int = 64):
  """Enlarged noise, which costs as much to decode as a photograph."""
  rng = np.random.default_rng(0)
  for i in range(count):
    small = Image.fromarray(rng.integers(0, 256, (125, 166, 3), dtype=np.uint8))
    data = io.BytesIO()
    small.resize((500, 375), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
    (folder / f"{i:03}.jpg").write_bytes(data.getvalue())


def recipe(name: str, folder: pathlib.Path):
  """The settings of one of the recipes, made to run here."""
  if name == "quickstart":
    config = quickstart.get_config()
    config.crops.color_strength = 1.0
  else:
    photographs(folder)
    config = vits16.get_config()
    config.data.update(source=str(folder), workers=2)
    config.train.update(batch_size=8, dtype="float32", prototype_chunks=16)
    config.koleo.group = 8
  config.evals.update(every=0, general="", best="")
  config.health.images = 0
  return config


def cpu() -> float:
  """Seconds of CPU of this process and of its workers, so far."""
  spent = time.process_time()
  for child in multiprocessing.active_children():
    with open(f"/proc/{child.pid}/stat") as file:
      user, system = file.read().rpartition(")")[2].split()[11:13]
    spent += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
  return spent


def measure(config, workdir: pathlib.Path, steps: int, rounds: int) -> dict[str, np.ndarray]:
  """Seconds, and seconds of CPU, of a step: [rounds, 2] for each place of the colours."""
  run = prepare.prepare(config, workdir)
  run.pipeline.close()
  state = jax.jit(functools.partial(init_state, run.config))()
  pipelines, batches = {}, {}
  for place in PLACES:
    changed = config.copy_and_resolve_references()
    changed.data.colors = place
    pipelines[place] = open_pipeline(changed, run.source, run.mesh)
    batches[place], _ = fetch(pipelines[place], run.mesh)
  spent = {place: np.zeros((rounds + 1, 2)) for place in PLACES}
  for turn in range(rounds + 1):  # the first compiles
    for place in PLACES:
      began = np.array([time.perf_counter(), cpu()])
      for _ in range(steps):
        state, metrics = run.train_step(state, batches[place])
        batches[place], _ = fetch(pipelines[place], run.mesh)
        jax.block_until_ready((metrics, batches[place]))
      spent[place][turn] = (np.array([time.perf_counter(), cpu()]) - began) / steps
  for pipeline in pipelines.values():
    pipeline.close()
  return {place: seconds[1:] for place, seconds in spent.items()}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--recipes", nargs="+", default=["quickstart", "vits16"],
                      choices=["quickstart", "vits16"])
  parser.add_argument("--steps", type=int, default=4, help="in a turn")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
  print("| recipe | colours | s a step | least and most | CPU s a step |")
  for name in args.recipes:
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      (folder / "images").mkdir()
      spent = measure(recipe(name, folder / "images"), folder / "run", args.steps, args.rounds)
    for place, seconds in spent.items():
      wall = seconds[:, 0]
      print(f"| {name} | {place} | {np.median(wall):.3f} | {wall.min():.3f} to {wall.max():.3f} | "
            f"{np.median(seconds[:, 1]):.3f} |", flush=True)
  print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
  main()
