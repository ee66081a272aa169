"""Data sets with a folder for each class, or sources with labels."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from dinov3_jax.data.sources import open_source
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
  try:
    source = open_source(spec, split)
  except ValueError as error:
    raise LayoutError(str(error)) from error
  if source.classes is None or source.labels is None:
    raise LayoutError(f"{printable(spec)} has no labels for its split {split}")
  if classes is not None and list(classes) != list(source.classes):
    raise LayoutError(f"{printable(spec)} has other classes in its split {split}")
  chosen = np.flatnonzero(np.asarray(source.labels) >= 0)
  return ([Stored.of(spec, source, int(i)) for i in chosen], np.asarray(source.labels)[chosen],
          list(source.classes))
