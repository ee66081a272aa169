"""Data sets with a folder for each class, or sources with labels."""

import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from dinov3_jax.data.sources import DamagedImage, Source, manifest, open_source
from dinov3_jax.data.sources.encoded import EncodedSource
from dinov3_jax.data.sources.index import Index, split_of_file
from dinov3_jax.data.sources.layout import read_layout
from dinov3_jax.data.sources.splits import HELD_OUT, SPLITS
from dinov3_jax.data.stored import Stored
from dinov3_jax.data.walk import SUFFIXES, images_below, printable
from dinov3_jax.evals.session import LayoutError

IMAGES = (*SUFFIXES, ".ppm")  # the last one for GTSRB
LAYOUT = "a folder for each class in train/ and in val/ (or test/)"


def classes_of(folder: pathlib.Path) -> list[str]:
  """The names of the class folders in order: of numbers if all are numbers (2 before 10)."""
  names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
  if not names:
    raise LayoutError(f"{folder} has no folders of classes: wanted is {LAYOUT}")
  return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def images_of(folder: pathlib.Path, classes: Sequence[str], others: bool = False
              ) -> tuple[list[str], np.ndarray]:
  """The images below the class folders and their classes.

  Args:
    folder: with the class folders.
    classes: their names, in order.
    others: whether there may be other folders, which are left out.

  Raises:
    LayoutError: a folder that is none of the classes, or one of them without images.
  """
  own = classes_of(folder)
  strange = sorted(set(own) - set(classes))
  if others:
    own = [name for name in own if name in classes]
  elif strange:
    raise LayoutError(f"{folder} has a class {strange[0]} that the training set does not have")
  paths, labels = [], []
  for name in own:
    found = sorted(os.path.join(folder, name, image)
                   for image in images_below(folder / name, suffixes=IMAGES))
    if not found:
      raise LayoutError(f"{folder / name} has no images")
    paths += found
    labels += [classes.index(name)] * len(found)
  return paths, np.array(labels)


def images_of_source(spec: str, split: str, classes: Sequence[str] | None
                     ) -> tuple[list[Stored], np.ndarray, list[str]]:
  """The labelled images of a split of a source (see `open_source`), their classes, and the names of
  these.

  Args:
    spec, split: of the source.
    classes: that there must be; None for whatever there is.

  Raises:
    LayoutError: it has no such split, no labels, or other classes.
  """
  source = _open(spec, split)
  labels = labels_of(source)
  if labels is None:
    raise LayoutError(f"{printable(spec)} has no labels for its split {split}")
  if classes is not None and list(classes) != list(source.classes):
    raise LayoutError(f"{printable(spec)} has other classes in its split {split}")
  chosen = np.flatnonzero(labels >= 0)
  return Stored.several(spec, source, chosen), labels[chosen], list(source.classes)


def labels_of(source: Source) -> np.ndarray | None:
  """The class of each image, int [n], -1 for none; None where no image of the source has one. Those
  of TFDS are read record by record."""
  if source.classes is None:
    return None
  if source.labels is not None or not hasattr(source, "label"):
    return None if source.labels is None else np.asarray(source.labels)

  def label(index):
    try:
      return source.label(index)
    except DamagedImage:  # it is named when its turn comes
      return -1

  labels = np.array([label(i) for i in range(len(source))], np.int64)
  return labels if (labels >= 0).any() else None


def splits_of_source(spec: str) -> tuple[tuple[list[Stored], np.ndarray],
                                         tuple[list[Stored], np.ndarray], list[str], list[str]]:
  """The training and the test set of a source, as `images_of_source` has them, the names of the
  classes, and what is to be said of the splits.

  The source's own val is the test set, or else its own test. What sources hold out of train for
  validation is the test set only where they have neither.

  Raises:
    LayoutError: as of `images_of_source`.
  """
  own = own_splits(spec, _open(spec, "all"))
  *train, classes = images_of_source(spec, "train", None)
  if "val" in own:
    return tuple(train), images_of_source(spec, "val", classes)[:2], classes, []
  if "test" not in own:
    return tuple(train), images_of_source(spec, "val", classes)[:2], classes, [
      f"no test set of its own, but {HELD_OUT} % of the images that are held out of the training "
      "set"]
  try:
    images, labels, _ = images_of_source(spec, "val", classes)
  except LayoutError:  # so few images that none is held out, or none with a label
    images, labels = [], np.zeros(0, int)
  train = train[0] + images, np.concatenate([train[1], labels])
  return train, images_of_source(spec, "test", classes)[:2], classes, []


def own_splits(spec: str, source: Source) -> set[str]:
  """Which of train, val and test a source itself tells apart, rather than a hash of the names.

  Args:
    spec: of it, as for `open_source`.
    source: all of its images.
  """
  if spec.startswith("manifest:"):
    path = spec.removeprefix("manifest:").partition("::")[0]
    return set(manifest.read(os.path.expanduser(path))[2] or ())
  if isinstance(source, EncodedSource):
    of_file = {split_of_file(path) for path in source.index.files}
    return of_file if "train" in of_file else read_layout(_own_names(source.index)).present
  return getattr(source, "own_splits", set(SPLITS))


def _own_names(index: Index) -> list[str]:
  """The names of images without those of their files, which are before them where files share
  names."""
  names = [index.name(row) for row in range(len(index))]
  if len(index.files) == 1:
    return names
  before = [re.compile(f"({re.escape(path)}|{re.escape(os.path.basename(path))})/")
            for path in index.files]
  cut = [before[number].match(name) for number, name in zip(index.file, names)]
  return [name[found.end():] for name, found in zip(names, cut)] if all(cut) else names


def _open(spec: str, split: str) -> Source:
  try:
    return open_source(spec, split)
  except ValueError as error:
    raise LayoutError(str(error)) from error
