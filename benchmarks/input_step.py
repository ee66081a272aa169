"""The whole training step, images and all, with colours on the host and on the device.

  python benchmarks/input_step.py [--recipes quickstart vits16] [--rounds 5]

The quickstart as it is, but with the reference's colours, and `configs/vits16.py` at 8 images a
step in float32, with 64 JPEGs of 500 x 375. Both settings take turns, each with a stream of its own
that begins and ends with the turn, and with the same state and compiled step; as in training, the
next batches are made by threads while a step runs. Run it on a machine that does nothing else.
"""

import argparse
import functools
import io
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
STEPS = dict(quickstart=40, vits16=4)  # in a turn


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
    config.data.update(source=str(folder), workers=0)
    config.train.update(batch_size=8, dtype="float32", prototype_chunks=16)
    config.koleo.group = 8
  config.evals.update(every=0, general="", best="")
  config.health.images = 0
  return config


def measure(config, workdir: pathlib.Path, steps: int, rounds: int) -> dict[str, np.ndarray]:
  """Seconds, and seconds of CPU, of a step: [rounds, 2] for each place of the colours."""
  run = prepare.prepare(config, workdir)
  run.pipeline.close()
  state = jax.jit(functools.partial(init_state, run.config))()
  spent = {place: np.zeros((rounds, 2)) for place in PLACES}
  for turn in range(-1, rounds):  # the first one compiles
    for place in PLACES:
      changed = config.copy_and_resolve_references()
      changed.data.colors = place
      began = np.array([time.perf_counter(), time.process_time()])
      pipeline = open_pipeline(changed, run.source, run.mesh)
      batch, _ = fetch(pipeline, run.mesh)
      for step in range(1 if turn < 0 else steps):
        state, metrics = run.train_step(state, batch)
        if step < steps - 1:
          batch, _ = fetch(pipeline, run.mesh)
        jax.block_until_ready((metrics, batch))
      pipeline.close()
      if turn >= 0:
        spent[place][turn] = np.array([time.perf_counter(), time.process_time()]) - began
  return {place: seconds / steps for place, seconds in spent.items()}


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--recipes", nargs="+", default=list(STEPS), choices=list(STEPS))
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
  print("| recipe | colours | s a step | least and most | CPU s a step |")
  for name in args.recipes:
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      (folder / "images").mkdir()
      spent = measure(recipe(name, folder / "images"), folder / "run", STEPS[name],
                      args.rounds)
    for place, seconds in spent.items():
      wall = seconds[:, 0]
      print(f"| {name} | {place} | {np.median(wall):.3f} | {wall.min():.3f} to {wall.max():.3f} | "
            f"{np.median(seconds[:, 1]):.3f} |", flush=True)
  print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
  main()
