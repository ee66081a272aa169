"""Zero-shot classification by the names of the classes (section 6.3 of the paper)."""

import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dinov3_jax.data.decode import DamagedImage
from dinov3_jax.data.walk import printable
from dinov3_jax.evals.class_folders import classes_of, images_of
from dinov3_jax.evals.framing import Framing, framing
from dinov3_jax.evals.session import LayoutError, Result, Session
from dinov3_jax.text.zeroshot import accuracy, class_features, imagenet_names, prompts

SIZE = 512  # of the reference's notebook
LAYOUT = "val/CLASS/*.jpg, and names.txt with a name a line unless the folders have the names"
PAPER = {"vitl16": {"top1": 82.3}}  # table 16, ImageNet-1k


def run(session: Session) -> Result:
  """The nearest of the classes' features, each the mean over CLIP's 80 templates."""
  folder = session.path("val", LAYOUT)
  classes = classes_of(folder)
  names = names_of(session.data, classes)
  images, labels = images_of(folder, classes)
  chosen = session.some(range(len(images)))
  size = session.side(SIZE)
  features, kept = image_features(session, [images[i] for i in chosen],
                                  framing(session.prepare, size))
  texts = class_features(lambda texts: session.model.encode_text(texts)["global"], names,
                         prompts())
  figures = accuracy(features, texts, labels[chosen][kept])
  return Result(
    {name: 100 * value for name, value in figures.items()},
    dict(size=size, images=len(kept), classes=len(classes), templates=len(prompts())),
    [f"images of {size} pixels, not {SIZE}"] * (size != SIZE)
    + [f"{session.limit} images"] * (session.limit is not None),
    PAPER if set(names) == set(imagenet_names()) else {})


def names_of(data: pathlib.Path, classes: Sequence[str]) -> list[str]:
  """What the classes are called: in `names.txt`, or by CLIP for ImageNet's, or by their folders.

  Raises:
    LayoutError: a `names.txt` of another length.
  """
  path = data / "names.txt"
  if path.is_file():
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if len(names) != len(classes) or not all(names):
      raise LayoutError(f"{printable(path)} has {len(names)} names for {len(classes)} folders: "
                        "wanted is one a line, in the folders' order")
    return names
  if len(classes) == 1000 and all(name[0] == "n" and name[1:].isdecimal() for name in classes):
    return list(imagenet_names())
  return [printable(name).replace("_", " ") for name in classes]


def image_features(session: Session, images: Sequence, look: Framing, name: str = "global"
                   ) -> tuple[np.ndarray, np.ndarray]:
  """The features of images, and the places of those that could be read.

  Args:
    session: with a model of text.
    images: paths.
    look: what they go through.
    name: "global" or "patches".

  Raises:
    ValueError: none can be read.
    Stopped: `session.stop` said so.
  """
  rows, kept = [], []
  for start, batch, found in _batches(session, images, look):
    session.check_stop()
    rows.append(np.asarray(session.model.encode_image(batch)[name])[found])
    kept.append(start + np.flatnonzero(found))
  features, kept = np.concatenate(rows), np.concatenate(kept)
  if not len(kept):
    raise ValueError(f"none of the {len(images)} images can be read")
  return features, kept


def _batches(session, images, look) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """The number of the first, all images of a batch (zeros where there is none), and which are
  there."""

  def read(path):
    try:
      return look(path)
    except DamagedImage as error:
      session.left_out[printable(path)] = error.reason
      return None

  count = session.batch_size
  with ThreadPoolExecutor() as threads:
    for start in session.each(range(0, len(images), count), "batches"):
      seen = list(threads.map(read, images[start:start + count]))
      batch = np.zeros((count, look.size, look.size, 3), np.float32)
      found = np.zeros(count, bool)
      for i, image in enumerate(seen):
        if image is not None:
          batch[i], found[i] = image, True
      yield start, batch, found
