"""Linear segmentation on VOC 2012, ADE20K and Cityscapes."""

import itertools
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from dinov3_jax.data.crops import resize
from dinov3_jax.data.decode import decode
from dinov3_jax.evals import dense_probe, one_cycle, segmentation, sliding
from dinov3_jax.evals.drawing import overlay
from dinov3_jax.evals.framing import normalize, read_labels
from dinov3_jax.evals.pca import grid
from dinov3_jax.evals.probe_training import drawn
from dinov3_jax.evals.session import LayoutError, Result, Session

SIZE, STRIDE = 512, 341  # of the windows; the short side is resized to the first
STEPS, WARMUP, BATCH = 40000, 1500, 16
CLASSES = {"VOC2012": 21, "ADE20K": 150, "Cityscapes": 19}
LAYOUT = ("VOCdevkit/VOC2012 with ImageSets/Segmentation/{train,val}.txt, or "
          "ADEChallengeData2016/{images,annotations}/{training,validation}, or leftImg8bit and "
          "gtFine with *_gtFine_labelTrainIds.png")
PAPER = {name: dict(zip(("ADE20K mIoU", "Cityscapes mIoU", "VOC2012 mIoU"), values))  # table 3, 7
         for name, values in dict(
  vits16=(47.0,), vits16plus=(48.8,), vitb16=(51.8,), vitl16=(54.9,), vith16plus=(54.8,),
  vit7b16=(55.9, 81.1, 86.6), convnext_tiny=(42.7,), convnext_small=(44.8,), convnext_base=(46.3,),
  convnext_large=(47.8,)).items()}
Pairs = list[tuple[pathlib.Path, pathlib.Path]]


def find(session: Session) -> tuple[str, dict[str, Pairs]]:
  """The name of the data set, and the images and label files of `train` and `val`.

  Raises:
    LayoutError: none of the three layouts, or images without label files.
  """
  root, splits = session.data, {}
  if (root / "ADEChallengeData2016").is_dir():
    name, root = "ADE20K", root / "ADEChallengeData2016"
    for split, folder in (("train", "training"), ("val", "validation")):
      splits[split] = [(path, root / "annotations" / folder / f"{path.stem}.png")
                       for path in sorted((root / "images" / folder).glob("*.jpg"))]
  elif (root / "leftImg8bit").is_dir():
    name = "Cityscapes"
    for split in ("train", "val"):
      splits[split] = [
        (path, root / "gtFine" / split / path.parent.name / path.name.replace(
            "_leftImg8bit.png", "_gtFine_labelTrainIds.png"))
        for path in sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))]
  else:
    name, base = "VOC2012", "VOCdevkit/VOC2012"
    for split in ("train", "val"):
      listed = session.path(f"{base}/ImageSets/Segmentation/{split}.txt", LAYOUT).read_text()
      splits[split] = [(root / base / "JPEGImages" / f"{own}.jpg",
                        root / base / "SegmentationClass" / f"{own}.png")
                       for own in listed.split()]
  for split, pairs in splits.items():
    if not pairs:
      raise LayoutError(f"{session.data} has no images of the split {split}: wanted is {LAYOUT}")
    for path in (p for pair in pairs for p in pair):
      if not path.exists():
        hint = "; cityscapesscripts makes it" if "labelTrainIds" in path.name else ""
        raise LayoutError(f"{path} is not there{hint}: wanted is {LAYOUT}")
  return name, splits


def labels_of(name: str, path: pathlib.Path) -> np.ndarray:
  """The classes of a label file, uint8 [H, W], 255 where none counts."""
  labels = read_labels(path)
  return segmentation.reduce_zero_label(labels) if name == "ADE20K" else labels


def run(session: Session) -> Result:
  """The paper's grid of rates and decays; the best probe by the validation mIoU."""
  name, splits = find(session)
  size, steps = session.side(SIZE), session.steps or STEPS
  train, val = (session.some(splits[split]) for split in ("train", "val"))
  classes = CLASSES[name]
  options, changed = session.options(rate_factor=1.0)
  schedule = one_cycle.segmentation(options.rate_factor, steps, WARMUP * steps // STEPS)
  kept = session.kept("segmentation", (size, steps, options),
                      (path for pair in train for path in pair))
  probe = dense_probe.train(batches(session, name, train, size, start=kept.step), schedule, classes,
                            mesh=session.mesh, kept=kept)
  total = np.zeros((len(probe.rates), 4, classes), np.int64)
  cells = []
  for image_path, label_path in val:
    labels, image = labels_of(name, label_path), decode(image_path, image_path)
    maps = predict(session, probe, image, size, labels.shape)
    total += [segmentation.areas(x, labels, classes) for x in maps]
    if len(cells) < 8:
      cells.append((image, labels, maps))
  figures = [segmentation.figures(x) for x in total]
  best = int(np.argmax([x["mIoU"] for x in figures]))
  shown = lambda x: np.asarray(Image.fromarray(x).resize((192, 192)))
  picture = grid([[shown(overlay(image, np.where(y == 255, 0, y))) for y in (labels, maps[best])]
                  for image, labels, maps in cells], columns=2)
  return Result(
    {f"{name} mIoU": 100 * figures[best]["mIoU"], f"{name} aAcc": 100 * figures[best]["aAcc"]},
    dict(size=size, stride=size * STRIDE // SIZE, steps=steps, batch=BATCH, classes=classes,
         train=len(train), val=len(val),
         best=dict(rate=options.rate_factor * float(probe.rates[best]),
                   decay=float(probe.decays[best]))),
    ["no photometric distortion, and crops may show one class alone"]
    + changed + [f"{steps} steps, not {STEPS}"] * (steps != STEPS)
    + [f"windows of {size} pixels, not {SIZE}"] * (size != SIZE)
    + [f"{session.limit} images of each split"] * (session.limit is not None), PAPER,
    {f"{name}.png": picture})


def batches(session: Session, name: str, pairs: Pairs, size: int, seed: int = 0, start: int = 0
            ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Endless batches of patches [B, h, w, D] and labels [B, size, size] of random crops, from the
  step `start` on.

  The short side is resized to `size` times a factor from 0.5 to 2, evenly; a crop that is larger
  than the image is filled up with 0 and 255; every second one is flipped.
  """
  for step in itertools.count(start):
    session.check_stop()
    chosen, rng = drawn(len(pairs), min(BATCH, len(pairs)), step, seed)
    images, labels = zip(*[crop(decode(image, image), labels_of(name, label), size, rng)
                           for image, label in (pairs[i] for i in chosen)])
    x = normalize(np.stack(images), session.prepare.mean, session.prepare.std)
    yield np.asarray(session.run(x)), np.stack(labels)


def crop(image: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator
         ) -> tuple[np.ndarray, np.ndarray]:
  """A random crop, as `batches` describes it: uint8 [size, size, 3] and [size, size]."""
  scale = size * rng.uniform(0.5, 2) / min(image.shape[:2])
  height, width = (max(round(side * scale), 1) for side in image.shape[:2])
  image = resize(image, height, width)
  labels = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
  top, left = (int(rng.integers(0, max(side - size, 0) + 1)) for side in (height, width))
  image, labels = (x[top:top + size, left:left + size] for x in (image, labels))
  padding = [(0, size - side) for side in labels.shape]
  image = np.pad(image, (*padding, (0, 0)))
  labels = np.pad(labels, padding, constant_values=segmentation.IGNORE)
  return (image[:, ::-1], labels[:, ::-1]) if rng.random() < 0.5 else (image, labels)


def predict(session: Session, probe: dense_probe.Probe, image: np.ndarray, size: int,
            shape: tuple[int, int]) -> list[np.ndarray]:
  """The class of every pixel, uint8 of `shape`, by each probe; the windows are seen once."""
  short = min(image.shape[:2])
  height, width = (max(round(side * size / short), size) for side in image.shape[:2])
  x = normalize(resize(image, height, width), session.prepare.mean, session.prepare.std)
  stride = size * STRIDE // SIZE
  seen = [session.run(x[None, top:top + h, left:left + w])
          for top, left, h, w in sliding.windows(height, width, size, stride)]
  result = []
  for head in range(len(probe.rates)):
    features = iter(seen)
    logits = sliding.predict(lambda _: probe.outputs(next(features), head), x, size, stride, shape)  # noqa: B023
    result.append(logits.argmax(-1).astype(np.uint8))
  return result
