"""Where images come from: a folder, TFDS, or the embedded OpenMoji set.

A source has a length and gives `source[i] -> {"image": uint8 [H, W, 3] RGB, "label": int, "name":
str}`, with a label of -1 where there is none. `source.classes` is a list of names, or None where
there are no labels; `source.labels` an int array, or None also where only reading every image would
tell (TFDS). A source pickles cheaply, for it travels to worker processes.
"""

import hashlib
import io
import os
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from dinov3_jax.data.crops import center_crop

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SPLITS = ("train", "val", "test")
HELD_OUT = 5  # percent of the images each, where a source has no val or test split of its own


class DamagedImage(Exception):
  """An image that cannot be read; carries its name and the reason."""

  def __init__(self, name: str, reason: object):
    super().__init__(name, str(reason))
    self.name, self.reason = name, str(reason)

  def __str__(self):
    return f"{self.name} cannot be read: {self.reason}"


class Source(Protocol):
  """What `open_source` returns."""

  labels: np.ndarray | None
  classes: list[str] | None

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict: ...


def open_source(spec: str | os.PathLike, split: str) -> Source:
  """Opens a source of images.

  Args:
    spec: `openmoji`, `openmoji:base` (without variants in skin tones), `tfds:NAME` or
      `tfds:NAME:VERSION`, or the path of a folder (see `FolderSource`).
    split: train, val, test, or all.

  Raises:
    ValueError: an unknown split, a missing or empty folder, a data set that is not there.
  """
  if split not in (*SPLITS, "all"):
    raise ValueError(f"unknown split {split!r}; take one of {', '.join(SPLITS)}, all")
  spec = os.fspath(spec)
  if spec in ("openmoji", "openmoji:base"):
    from dinov3_jax.data.openmoji import OpenMoji
    return OpenMoji(split, base_only=spec.endswith(":base"))
  if spec.startswith("tfds:"):
    return TfdsSource(spec.removeprefix("tfds:"), split)
  return FolderSource(spec, split)


def hash_percent(key: str) -> int:
  """A stable, uniform number in 0..99 for a name, to split data by."""
  return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100


def decode(data: bytes | os.PathLike, name: str) -> np.ndarray:
  """Reads a JPEG, PNG or WebP image as uint8 [H, W, 3] RGB, turned upright by its EXIF orientation.

  Pillow rather than OpenCV: a truncated file is an error here, not half an image. Transparency is
  dropped, as in the reference.

  Args:
    data: the encoded bytes, or the path of a file.
    name: of the image, for the error.

  Raises:
    DamagedImage: it cannot be read.
  """
  try:
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
      ImageOps.exif_transpose(image, in_place=True)
      return np.asarray(image.convert("RGB"))
  except Exception as error:  # Pillow's decoders raise nearly anything
    raise DamagedImage(name, error) from error


class FolderSource:
  """All JPEG, PNG and WebP files below a folder, in the order of their paths.

  Where the folder has a `train` folder, its splits are the folders train, val and test; without a
  `val`, 5 % of train is held out. A plain folder is split 90 / 5 / 5 by a hash of each path, which
  neither order nor other files change. The class of an image is the folder at the top of its path;
  without any, there are no labels. Names are paths relative to the folder.
  """

  def __init__(self, root: str | os.PathLike, split: str):
    self.root = pathlib.Path(root).expanduser()
    if not self.root.is_dir():
      raise ValueError(f"no folder of images at {self.root}; give a folder, tfds:NAME or openmoji")
    found = sorted(_find_images(self.root))
    if not found:
      raise ValueError(f"no image below {self.root}; JPEG, PNG and WebP files count "
                       f"({', '.join(SUFFIXES)})")
    has_splits = (self.root / "train").is_dir()
    if has_splits:
      found = [path for path in found if path.split("/")[0] in SPLITS]
    present = {path.split("/")[0] for path in found} if has_splits else set()
    paths = [path for path in found if split in ("all", _split_of(path, present))]
    if not paths:
      raise ValueError(f"no image for the split {split!r} in {self.root}" + (
        f", which has the splits {', '.join(sorted(present))}" if has_splits else
        f": of its {len(found)} images none is held out; give folders train, val and test"))
    # The classes of all splits, so that their numbers agree.
    depth = int(has_splits)
    folders = {path.split("/")[depth] for path in found if path.count("/") > depth}
    self.classes = sorted(folders) or None
    self.labels = None
    if self.classes:
      number = {name: i for i, name in enumerate(self.classes)}
      self.labels = np.array([number.get(path.split("/")[depth], -1) for path in paths])
    # Bytes in an array: millions of paths as Python strings are heavy to send to every worker.
    self._paths = np.array([os.fsencode(path) for path in paths])

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> dict:
    name = os.fsdecode(bytes(self._paths[index]))
    label = -1 if self.labels is None else int(self.labels[index])
    return {"image": decode(self.root / name, name), "label": label, "name": name}


def _find_images(root: pathlib.Path) -> Iterator[str]:
  for folder, folders, files in os.walk(root, followlinks=True):
    folders[:] = [name for name in folders if not name.startswith(".")]
    base = pathlib.Path(folder).relative_to(root)
    for file in files:
      if file.lower().endswith(SUFFIXES) and not file.startswith("."):
        yield (base / file).as_posix()


def _split_of(path: str, present: set[str]) -> str:
  """The split that a path belongs to; `present` are the splits that have folders."""
  percent = hash_percent(path)
  if not present:
    return "val" if percent < HELD_OUT else "test" if percent < 2 * HELD_OUT else "train"
  split = path.split("/")[0]
  return "val" if split == "train" and "val" not in present and percent < HELD_OUT else split


class TfdsSource:
  """A TensorFlow Datasets set of images, read without TensorFlow.

  It must have been prepared in the array_record format. val is its `validation` split, or the last
  5 % of train where there is none.
  """

  labels = None

  def __init__(self, name: str, split: str):
    try:
      import tensorflow_datasets as tfds
    except ImportError as error:
      raise ValueError(f"tfds:{name} needs a package that is missing ({error.name}); "
                       "pip install tensorflow-datasets array_record") from error
    self.name = name
    try:
      # TFDS itself reads this variable once, when it is imported.
      builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"),
                             file_format="array_record")
      sizes = {key: info.num_examples for key, info in builder.info.splits.items()}
    except Exception as error:
      raise ValueError(f"tfds:{name} cannot be opened: {_first_line(error)}") from error
    if not sizes:
      raise ValueError(
        f"tfds:{name} is not prepared in {builder.data_dir}; run `tfds build {name} "
        "--file_format=array_record` and set TFDS_DATA_DIR if it lies elsewhere")
    own_val = "validation" in sizes
    spans = {
      "train": "train" if own_val else f"train[:{100 - HELD_OUT}%]",
      "val": "validation" if own_val else f"train[{100 - HELD_OUT}%:]",
      "test": "test",
      "all": "+".join(sizes),
    }
    self.span = spans[split]
    if self.span.split("[")[0] not in (*sizes, spans["all"]):
      raise ValueError(f"tfds:{name} has no split {split!r}; it has {', '.join(sizes)}")
    features = builder.info.features
    self._image = next((key for key, feature in features.items()
                        if isinstance(feature, tfds.features.Image)), None)
    if self._image is None:
      raise ValueError(f"tfds:{name} has no feature that is an image; it has {', '.join(features)}")
    has_label = "label" in features and isinstance(features["label"], tfds.features.ClassLabel)
    self._label = "label" if has_label else None
    self._file_name = "file_name" if "file_name" in features else None
    self.classes = list(features["label"].names) if self._label else None
    self._data = builder.as_data_source(
      split=self.span, decoders={self._image: tfds.decode.SkipDecoding()})

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, index: int) -> dict:
    name = f"{self.name}/{self.span}/{index}"
    try:
      record = self._data[int(index)]
    except Exception as error:
      raise DamagedImage(name, _first_line(error)) from error
    if self._file_name:
      file = record[self._file_name]
      name = file.decode() if isinstance(file, bytes) else str(file)
    label = int(record[self._label]) if self._label else -1
    return {"image": decode(bytes(record[self._image]), name), "label": label, "name": name}


def _first_line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def eval_batches(source: Source, size: int, batch_size: int, limit: int | None = None,
                 resize: int | None = None, seed: int = 0, threads: int = 4
                 ) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
  """Images as evaluations see them: middle squares, in the source's order, each once.

  Damaged images are left out, and named in the log.

  Args:
    source: of the images.
    size, resize: see `crops.center_crop`.
    batch_size: images a batch.
    limit: at most so many images, a random sample that depends on `seed` alone; None for all. (The
      first so many of a folder would be its first classes.)
    seed: of the sample.
    threads: that decode.

  Yields:
    images uint8 [batch_size, size, size, 3], labels int [n], names [n]. n is the batch size but
    for the last batch, whose remaining images are zeros, so that a compiled function sees one
    shape: `features(images)[:len(labels)]`.
  """
  def load(index: int) -> dict | None:
    try:
      item = source[index]
    except DamagedImage as error:
      logging.warning("Left out: %s.", error)
      return None
    return {**item, "image": center_crop(item["image"], size, resize)}

  def batch(items: list[dict]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    images = np.zeros((batch_size, size, size, 3), np.uint8)
    for i, item in enumerate(items):
      images[i] = item["image"]
    return images, np.array([item["label"] for item in items]), [item["name"] for item in items]

  indices = np.arange(len(source))
  if limit is not None and limit < len(indices):
    indices = np.sort(np.random.default_rng(seed).permutation(indices)[:limit])
  with ThreadPoolExecutor(threads) as pool:
    items = []
    for start in range(0, len(indices), batch_size):
      items += filter(None, pool.map(load, indices[start : start + batch_size].tolist()))
      if len(items) >= batch_size:
        yield batch(items[:batch_size])
        items = items[batch_size:]
    if items:
      yield batch(items)
