"""Curation end to end on OpenMoji, with what crawls have too much of:

  python benchmarks/curation_openmoji.py --workdir=DIR [--steps=800]

makes a pool of its training drawings with copies (crops, re-encodings, flips) of one in ten and
with 20 times as many images in one category, and trains the quickstart on it. The teacher's
features go through the steps of `dinov3_jax.curate`. The quickstart is then trained as long on the
curated sample, and on a mixture of all that is unique and the sample. Printed: copies found and
missed, what else was joined, the balance of the categories before and after, and the k-NN accuracy
of the three trainings on the test drawings. A run that was stopped goes on. It needs
`pip install -e .[quickstart]`, and 60 steps at least.
"""

import argparse
import collections
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

KINDS = ("crop", "encoded", "flip")
EXCESS = 20
K = 10


def copy(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
  """The same picture in another file."""
  if kind == "flip":
    return ImageOps.mirror(image)
  if kind == "encoded":
    return image.resize((96, 96), Image.BICUBIC).resize(image.size, Image.BICUBIC)
  side = int(image.width * rng.uniform(0.85, 0.95))
  left, top = rng.integers(0, image.width - side + 1, 2).tolist()
  return image.crop((left, top, left + side, top + side)).resize(image.size, Image.BICUBIC)


def variant(image: Image.Image, rng: np.random.Generator) -> Image.Image:
  """Another picture of the same thing: turned, smaller, in other colours."""
  hsv = np.asarray(image.convert("HSV")).copy()
  hsv[..., 0] += rng.integers(0, 256, dtype=np.uint8)
  image = Image.fromarray(hsv, "HSV").convert("RGB")
  image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.1))
  image = image.rotate(rng.uniform(-60, 60), Image.BICUBIC, fillcolor="white")
  side = int(image.width * rng.uniform(0.5, 0.9))
  canvas = Image.new("RGB", image.size, "white")
  left, top = rng.integers(0, image.width - side + 1, 2).tolist()
  canvas.paste(image.resize((side, side), Image.BICUBIC), (left, top))
  return canvas


def make_pool(folder: pathlib.Path, drawings: int | None) -> None:
  """Writes folder/CATEGORY/ORIGINAL[.KIND].png; copies have the kind of copy in their names."""
  from dinov3_jax.data.sources import open_source
  source = open_source("openmoji:base", "train")
  rng = np.random.default_rng(0)
  labelled = np.flatnonzero(source.labels >= 0)
  if drawings:
    labelled = np.sort(rng.permutation(labelled)[:drawings])
  counts = np.bincount(source.labels[labelled], minlength=len(source.classes))
  most = int(np.argsort(counts)[len(counts) // 2])  # of middling size before
  for index in labelled.tolist():
    label = source.labels[index]
    at = folder / source.classes[label].replace("/", "-").replace(" ", "-")
    at.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(source[index]["image"])
    image.save(at / f"{index}.png")
    if rng.uniform() < 0.1:
      for kind in KINDS:
        made = copy(image, kind, rng)
        if kind == "encoded":
          made.save(at / f"{index}.{kind}.jpg", quality=40)
        else:
          made.save(at / f"{index}.{kind}.png")
    if label == most:
      for i in range(EXCESS - 1):
        variant(image, rng).save(at / f"{index}.variant{i}.png")


def run(module: str, *arguments) -> None:
  """A command, or an end of everything."""
  code = subprocess.call([sys.executable, "-m", f"dinov3_jax.{module}", *map(str, arguments)])
  if code:
    sys.exit(code)


def train(workdir: pathlib.Path, images: pathlib.Path, steps: int) -> None:
  """The quickstart on a folder."""
  run("main", "--config=configs/quickstart.py", f"--workdir={workdir}",
      f"--config.data.source={images}", f"--config.train.steps={steps}",
      f"--config.evals.every={steps}", f"--config.schedules.teacher_temp.warmup_steps={steps}")


def link(names: list[str], pool: pathlib.Path, folder: pathlib.Path, what: str) -> None:
  """Images of the pool as a folder of their own."""
  for i, name in enumerate(names):
    file = folder / pathlib.Path(name).parent / f"{what}{i}{pathlib.Path(name).suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_symlink():
      os.symlink((pool / name).resolve(), file)


def original(name: str) -> str:
  """The drawing that a name is a copy of; a variant is a picture of its own."""
  path = pathlib.Path(name)
  stem, _, kind = path.stem.partition(".")
  return f"{path.parent}/{stem}" if kind in ("", *KINDS) else str(path.with_suffix(""))


def duplicates_found(curation: pathlib.Path) -> list[str]:
  """Lines about the copies that deduplication joined with their originals, and what else."""
  from dinov3_jax.curation.results import open_store
  store = open_store(curation)
  names = store.names(np.arange(store.rows))
  kept = np.load(curation / "unique" / "kept_for.npy")
  group = {name: int(first) for name, first in zip(names, kept)}
  first = {original(name): group[name] for name in names if "." not in pathlib.Path(name).stem}
  made, found = collections.Counter(), collections.Counter()
  for name in names:
    kind = pathlib.Path(name).stem.partition(".")[2]
    if kind in KINDS:
      made[kind] += 1
      found[kind] += group[name] == first[original(name)]
  members = collections.defaultdict(set)
  for name in names:
    members[group[name]].add(original(name))
  joined = sum(len(of) - 1 for of in members.values())
  lines = [f"| {kind} | {made[kind]} | {found[kind]} | {made[kind] - found[kind]} |"
           for kind in KINDS]
  return ["| copies | made | found | missed |", "|---|---:|---:|---:|", *lines,
          f"\nDifferent drawings that were joined: {joined} of {len(set(map(original, names)))}."]


def balance(names: list[str]) -> tuple[int, float, float]:
  """Images, entropy of their categories in bits, and the share of the most frequent one."""
  counts = np.array(list(collections.Counter(name.split("/")[0] for name in names).values()))
  share = counts / counts.sum()
  return len(names), float(-(share * np.log2(share)).sum()), float(share.max())


def knn(workdir: pathlib.Path) -> float:
  """Accuracy on the test drawings, with the training drawings as the bank."""
  from dinov3_jax.data.sources import open_source
  from dinov3_jax.evals.backbone import open_model
  from dinov3_jax.evals.knn import knn_accuracy
  model, prepare = open_model(str(workdir))
  data = []
  for split in ("train", "test"):
    source = open_source("openmoji:base", split)
    chosen = np.flatnonzero(source.labels >= 0)
    features = []
    for i in range(0, len(chosen), 64):
      images = np.stack([prepare(source[j]["image"]) for j in chosen[i:i + 64].tolist()])
      fill = np.zeros((64 - len(images), *images.shape[1:]), images.dtype)
      features.append(np.asarray(model(np.concatenate([images, fill]))["cls"])[:len(images)])
    data += [np.concatenate(features), source.labels[chosen]]
  return knn_accuracy(*data, k=K)[K]["top1"]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--steps", type=int, default=800)
  parser.add_argument("--drawings", type=int, help="of the pool, to try it; all by default")
  parser.add_argument("--threshold", type=float, default=0.95)
  args = parser.parse_args()
  here = lambda name: args.workdir / name
  pool, curation = here("pool"), here("curation")
  if not here("pool.made").exists():
    make_pool(pool, args.drawings)
    here("pool.made").touch()
  train(here("raw"), pool, args.steps)
  run("curate", "embed", pool, "--dir", curation, "--weights", here("raw"))
  run("curate", "dedup", "--dir", curation, "--threshold", args.threshold)
  left = len(np.load(curation / "unique" / "rows.npy"))
  levels = [max(left // 10, 1), max(left // 100, 1), max(left // 400, 1)]
  run("curate", "cluster", "--dir", curation, "--of", "unique", "--levels",
      ",".join(map(str, levels)))
  run("curate", "sample", "--dir", curation, "--target", math.ceil(left / 2))
  run("curate", "mix", "--dir", curation, "unique=1", "sample=1")
  run("curate", "look", "--dir", curation)
  names = {what: (curation / what / "names.txt").read_text().splitlines()
           for what in ("unique", "sample")}
  link(names["sample"], pool, here("clustered-images"), "sample")
  for what in ("unique", "sample"):
    link(names[what], pool, here("mixed-images"), what)
  for what in ("clustered", "mixed"):
    train(here(what), here(f"{what}-images"), args.steps)

  everything = sorted(path.relative_to(pool).as_posix() for path in pool.rglob("*.*"))
  print("\n".join(duplicates_found(curation)))
  print("\n| | images | entropy of the categories, bits | most frequent category |\n"
        "|---|---:|---:|---:|")
  for what, of in dict(pool=everything, **names).items():
    count, bits, share = balance(of)
    print(f"| {what} | {count:,} | {bits:.3f} | {share:.1%} |")
  print(f"\n| trained {args.steps:,} steps on | k-NN (k = {K}) |\n|---|---:|")
  for what in ("raw", "clustered", "mixed"):
    print(f"| {what} | {knn(here(what)):.1%} |")


if __name__ == "__main__":
  main()
