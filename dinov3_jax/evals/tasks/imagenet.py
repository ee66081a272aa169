"""A linear head of ImageNet-1k on its other test sets: V2, ReaL, A, R, Sketch, C, ObjectNet."""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np

from dinov3_jax.evals import classification, objectnet, robustness
from dinov3_jax.evals import linear as probe
from dinov3_jax.evals.class_folders import classes_of, images_of
from dinov3_jax.evals.framing import framing
from dinov3_jax.evals.session import LayoutError, Result, Session

SIZE = 512  # paper 6.2.1
LAYOUT = ("train/WNID and val/WNID, and any of imagenetv2-matched-frequency-format-val/NUMBER, "
          "real.json, imagenet-a, imagenet-r, sketch, imagenet-c/CORRUPTION/LEVEL/WNID, "
          "objectnet-1.0/images/FOLDER")
V2 = "imagenetv2-matched-frequency-format-val"
NAMES = {"imagenet-a": "A", "imagenet-r": "R", "sketch": "Sketch"}
PAPER = {"vit7b16": {"val": 88.4, "V2": 81.4, "ReaL": 90.4, "R": 91.1, "Sketch": 71.3, "A": 86.9,
                     "C, mCE over 15": 19.6, "ObjectNet": 79.0}} | {
  name: {"ReaL": real, "R": r, "ObjectNet": objects} for name, real, r, objects in [
    ("vits16", 87.0, 60.4, 50.9), ("vits16plus", 88.0, 68.8, 54.6), ("vitb16", 89.3, 76.7, 64.1),
    ("vitl16", 90.2, 88.1, 74.8), ("vith16plus", 90.3, 90.0, 78.6)]}


def run(session: Session) -> Result:
  """The head that is best on the validation set is carried to the other sets, as it is."""
  train, val = (session.path(name, LAYOUT) for name in ("train", "val"))
  classes, look = classes_of(train), framing(session.prepare, session.side(SIZE))

  def features(folder, own, look=look, others=False):
    images, labels = images_of(folder, own, others)
    chosen = session.some(range(len(images)))
    x, kept = session.features([images[i] for i in chosen], look)
    return x, labels[chosen][kept], [pathlib.Path(images[chosen[i]]) for i in kept]

  x, labels, paths = features(train, classes)
  kept = session.kept("linear", (look, session.steps, labels.tolist()), paths)
  heads = probe.train(x, labels, num_classes=len(classes), steps=session.steps, kept=kept)
  x, truth, paths = features(val, classes)
  accuracy = probe.accuracies(heads, x, truth)
  best = int(np.argmax(accuracy))
  logits = heads.logits(x, best)
  figures, differs = {"val": 100 * accuracy[best]}, [
    "features of the middle of each training image, not of random crops"]
  if (session.data / "real.json").exists():
    figures["ReaL"] = 100 * classification.accuracy_any(
        logits, real_labels(session.data / "real.json", [path.name for path in paths]))[0]

  def score(folder: pathlib.Path, own: list[str]) -> float:
    """The accuracy among the classes that the set has, in the head's order."""
    y, true, _ = features(folder, own)
    places = [classes.index(name) for name in own]
    return float((robustness.predict_within(heads.logits(y, best), places) == true).mean())

  if (session.data / V2).is_dir():
    own = numbered(session.data / V2, len(classes))
    y, true, _ = features(session.data / V2, own)
    found = heads.logits(y, best).argmax(1)
    figures["V2"] = 100 * float((found == np.array([int(name) for name in own])[true]).mean())
  for folder, name in NAMES.items():
    if (session.data / folder).is_dir():
      own = known(session.data / folder, classes)
      figures[name] = 100 * score(session.data / folder, own)
  if (session.data / "imagenet-c").is_dir():
    figures |= corruptions(session.data / "imagenet-c", lambda f: score(f, known(f, classes)))
    differs.append("the paper does not say whether its mCE is over 15 or 19 corruptions")
  if (session.data / "objectnet-1.0").is_dir():
    folder = session.path("objectnet-1.0/images", LAYOUT)
    own = objectnet_folders(folder, len(classes))
    y, true, _ = features(folder, own, dataclasses.replace(look, border=objectnet.BORDER),
                          others=True)
    figures["ObjectNet"] = 100 * robustness.accuracy_of_folders(
        heads.logits(y, best), [own[i] for i in true], objectnet.FOLDERS)[0]
    differs.append("ObjectNet by the rule of its testbed, the best of 125 classes, any of a "
                   "folder's: the paper does not say its own")
  size = session.side(SIZE)
  return Result(figures, dict(
      size=size, train=len(labels), classes=len(classes), steps=len(heads.losses),
      best=dict(rate=float(heads.rates[best]), decay=float(heads.decays[best]))), differs
    + [f"images of {size} pixels, not {SIZE}"] * (size != SIZE)
    + [f"{session.steps} steps, not {probe.EPOCHS} epochs"] * (session.steps is not None)
    + [f"{session.limit} images of each set"] * (session.limit is not None), PAPER)


def known(folder: pathlib.Path, classes: list[str]) -> list[str]:
  """The classes of a set, in order; they are the logits that count for it.

  Raises:
    LayoutError: one that the training set does not have.
  """
  own = classes_of(folder)
  strange = sorted(set(own) - set(classes))
  if strange:
    raise LayoutError(f"{folder} has a class {strange[0]} that the training set does not have")
  return own


def numbered(folder: pathlib.Path, count: int) -> list[str]:
  """The folders of ImageNetV2, whose names are the numbers of classes: 2 stands before 10.

  Raises:
    LayoutError: names that are no numbers below `count`.
  """
  own = classes_of(folder)
  wrong = [name for name in own if not name.isdecimal() or int(name) >= count]
  if wrong:
    raise LayoutError(f"{folder} has a folder {wrong[0]}: its names are the numbers of the "
                      f"{count} classes, from 0")
  return own


def objectnet_folders(folder: pathlib.Path, count: int) -> list[str]:
  """The folders of ObjectNet that are classes of ImageNet; the others are not looked at.

  Raises:
    LayoutError: a head of other than ImageNet's classes, or no such folder.
  """
  if count != objectnet.CLASSES:
    raise LayoutError(f"{folder} is tested with a head of {objectnet.CLASSES} classes, "
                      f"the training set has {count}")
  own = [name for name in classes_of(folder) if name in objectnet.FOLDERS]
  if not own:
    raise LayoutError(f"{folder} has no folders like {', '.join(list(objectnet.FOLDERS)[:3])}")
  return own


def real_labels(path: pathlib.Path, names: list[str]) -> list[list[int]]:
  """ReaL's lists for validation images by their file names, ILSVRC2012_val_00000001 the first.

  Raises:
    LayoutError: another file, or names of another form.
  """
  try:
    lists = json.loads(path.read_text())
    numbers = [int(name.split(".")[0].rsplit("_", 1)[1]) for name in names]
    return [lists[number - 1] for number in numbers]
  except (ValueError, IndexError, TypeError, KeyError) as error:
    raise LayoutError(f"{path} does not fit the validation images, which must be named "
                      "ILSVRC2012_val_00000001.JPEG and so on") from error


def corruptions(folder: pathlib.Path, score: Callable[[pathlib.Path], float]) -> dict[str, float]:
  """The mCE of what lies in CORRUPTION/LEVEL, over 15 and, where they are there, 19.

  Raises:
    LayoutError: none of the corruptions, or levels that are not 1 to 5.
  """
  accuracy = {}
  for place in sorted(p for p in folder.iterdir() if p.is_dir()):
    levels = classes_of(place)
    if place.name not in robustness.ALEXNET or not set(levels) <= set("12345"):
      raise LayoutError(f"{place} has levels {', '.join(levels)}: wanted are corruptions like "
                        "gaussian_noise with levels 1 to 5")
    accuracy[place.name] = {int(level): score(place / level) for level in levels}
  result = {"C, mCE over 15": robustness.mean_corruption_error(accuracy)}
  if set(accuracy) & set(robustness.EXTRA):
    result["C, mCE over 19"] = robustness.mean_corruption_error(accuracy, extra=True)
  return result
