"""The table of `distill.md`: small students that have a teacher, and the same ones alone.

  nice python benchmarks/distill.py --folder=DIR [--teacher-steps=350] [--steps=250] [--seed=0]

trains a ViT of width 256 on OpenMoji, then a ViT and a ConvNeXt of about a quarter of its
parameters, each once with it as the teacher and once alone, and prints the table. A run that is in
DIR already goes on where it was. `--teacher=RUN` takes that run's newest checkpoint as the teacher,
and trains none. Needs `pip install -e .[quickstart]`.
"""

import argparse
import functools
import pathlib
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import base, quickstart
from dinov3_jax.data.crops import center_crop
from dinov3_jax.data.sources import OpenMoji
from dinov3_jax.evals.knn import raw_pixels
from dinov3_jax.models.variants import stride
from dinov3_jax.train import checkpoint, loop, sharding
from dinov3_jax.train.evaluation import Evaluation, make_forward
from dinov3_jax.train.images import open_images
from dinov3_jax.train.state import init_state

GRID = 8  # patches along each side of the images whose foreground is found
BATCH = 50
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the probe for it, chosen on the validation drawings
DRAWINGS = 200  # of each split that the probe sees


def recipe(steps: int, seed: int) -> ConfigDict:
  """The quickstart's, at another length."""
  config = quickstart.get_config()
  config.seed = seed
  config.train.steps = steps
  config.schedules.teacher_temp.update(base.linear(0.01, 0.03, steps))
  config.checkpoint.update(every=50, keep_every=0)
  config.health.images = 0
  config.evals.every = 0
  return config


def teacher_recipe(steps: int, seed: int) -> ConfigDict:
  config = recipe(steps, seed)
  config.model.update(width=256, num_heads=8)
  return config


def convnext_recipe(steps: int, seed: int) -> ConfigDict:
  """Its patches are four times as wide as the teacher's, and so are its crops, but for a patch."""
  config = recipe(steps, seed)
  with config.unlocked():
    config.model = base.convnext((1, 1, 4, 1), (24, 48, 96, 192), layerscale=1.0)
  config.crops.update(global_sizes=(96,), local_sizes=(64,))
  config.train.batch_size = config.koleo.group = 32
  return config


STUDENTS = dict(ViT=recipe, ConvNeXt=convnext_recipe)


def trained(config: ConfigDict, folder: pathlib.Path) -> dict:
  """The backbone of the run's average, after its last step."""
  began = time.monotonic()
  last = folder / checkpoint.FOLDER / str(config.train.steps)
  if not last.exists() and int(loop.train(config, folder).step) < config.train.steps:
    raise SystemExit(f"{folder.name} was stopped; the same command goes on from there")
  print(f"{folder.name}: {time.monotonic() - began:.0f} s", flush=True)
  return checkpoint.restore_teacher(folder)[0]["backbone"]


def accuracy(config: ConfigDict, folder: pathlib.Path, backbone: dict | None) -> float:
  """k-NN, in per cent: training drawings vote on the test drawings; None: of raw pixels."""
  config = config.copy_and_resolve_references()
  config.evals.image_size = config.crops.global_sizes[0]
  evaluation = Evaluation(config, folder, sharding.make_mesh(config), open_images(config, "train"),
                          open_images(config, "test"))
  features = raw_pixels if backbone is None else functools.partial(evaluation.cls, backbone)
  return 100 * evaluation.knn(features)["top1"]


@functools.cache
def drawings(split: str, side: int) -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [n, side, side, 3], and which of their patches are foreground, bool [n, GRID^2]:
  those that a drawing covers by more than a half."""
  source = OpenMoji(split, base_only=True)
  chosen = np.random.default_rng(0).permutation(len(source))[:DRAWINGS]
  images = np.stack([center_crop(source[i]["image"], side) for i in chosen])
  cover = np.stack([source.mask(i) for i in chosen]).astype(np.float32) / 255
  cell = source.side // GRID
  cover = cover.reshape(len(chosen), GRID, cell, GRID, cell).mean((2, 4))
  return images, cover.reshape(len(chosen), -1) > 0.5


def foreground(config: ConfigDict, backbone: dict) -> float:
  """IoU, in per cent, of the foreground that a ridge regression finds in patch features."""
  forward = jax.jit(make_forward(config, sharding.make_mesh(config)))

  def read(split):
    images, truth = drawings(split, GRID * stride(config.model))
    rows = [np.asarray(forward(backbone, images[i:i + BATCH])["patches"])
            for i in range(0, len(images), BATCH)]
    return np.concatenate(rows).reshape(truth.size, -1), truth.ravel()

  (x, y), validation, test = map(read, ("train", "val", "test"))
  mean, scale = x.mean(0), x.std(0) + 1e-6
  with_one = lambda rows: np.pad((rows - mean) / scale, ((0, 0), (0, 1)), constant_values=1.0)
  x = with_one(x).astype(np.float64)

  def iou(weights, rows, truth):
    found = with_one(rows) @ weights > 0.5
    return 100 * (found & truth).sum() / (found | truth).sum()

  probes = [np.linalg.solve(x.T @ x + ridge * len(x) * np.eye(x.shape[1]), x.T @ y)
            for ridge in RIDGES]
  return iou(max(probes, key=lambda probe: iou(probe, *validation)), *test)


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--teacher", type=pathlib.Path)
  parser.add_argument("--teacher-steps", type=int, default=350)
  parser.add_argument("--steps", type=int, default=250)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  teacher = args.teacher or args.folder / "teacher"
  if args.teacher is None:
    trained(teacher_recipe(args.teacher_steps, args.seed), teacher)
  params, config = checkpoint.restore_teacher(teacher)
  rows = [(f"teacher, {checkpoint.latest(teacher).name} steps", config, params["backbone"])]
  for name, make in STUDENTS.items():
    config = make(args.steps, args.seed)
    fresh = jax.jit(functools.partial(init_state, config))().teacher["backbone"]
    rows.append((f"{name}, untrained", config, fresh))
    rows.append((f"{name}, alone", config, trained(config, args.folder / f"{name}-alone")))
    config = make(args.steps, args.seed)
    config.distill.teacher = str(teacher)
    rows.append((f"{name}, distilled", config, trained(config, args.folder / f"{name}-distilled")))

  print("| | parameters | k-NN, % | foreground IoU, % |\n|---|---:|---:|---:|")
  print(f"| raw pixels | | {accuracy(rows[0][1], args.folder, None):.1f} | |")
  for name, config, backbone in rows:
    count = sum(x.size for x in jax.tree.leaves(backbone))
    print(f"| {name} | {count:,} | {accuracy(config, args.folder, backbone):.1f} "
          f"| {foreground(config, backbone):.1f} |", flush=True)


if __name__ == "__main__":
  main()
