"""A folder of images."""

import collections
import logging
import os
import pathlib

import numpy as np

from dinov3_jax.data.decode import DamagedImage, Decoder, decode
from dinov3_jax.data.sources.layout import Layout, read_layout
from dinov3_jax.data.sources.marks import file_mark
from dinov3_jax.data.sources.notes import pixel_notes, spread
from dinov3_jax.data.walk import SUFFIXES, images_below, printable

log = logging.getLogger(__name__)

_told = set()  # the folders that this process has described


class FolderSource:
  """All JPEG, PNG and WebP files below a folder, in the order of their paths.

  Where the folder has folders for splits (see `layout.read_layout`), those are its splits; without
  one for val, 5 % of train is held out. A plain folder is split 90 / 5 / 5 by a hash of each path,
  which neither order nor other files change. The class of an image is the folder at the top of its
  path, within that of its split; without any, there are no labels. Names are paths relative to the
  folder, and like classes they are printable (see `walk.printable`). How a folder was read is
  logged, once a process.
  """

  def __init__(self, root: str | os.PathLike, split: str, decoder: Decoder = decode):
    self.root, self._decoder = pathlib.Path(root).expanduser(), decoder
    if not self.root.is_dir():
      raise ValueError(f"no folder of images at {printable(self.root)}; give a folder, tfds:NAME "
                       "or openmoji")
    others = collections.Counter()
    found = sorted(images_below(self.root, others))
    if not found:
      raise ValueError(f"no image below {printable(self.root)}; JPEG, PNG and WebP files count "
                       f"({', '.join(SUFFIXES)})" + (f", not its {_counts(others)}" if others else
                                                     ""))
    layout = read_layout(found)
    total, depth = len(found), layout.depth
    splits = [layout.split(path) for path in found]
    if layout.splits:
      found, splits = zip(*((path, name) for path, name in zip(found, splits) if name))
    paths = [path for path, name in zip(found, splits) if split in ("all", name)]
    if not paths:
      raise ValueError(f"no image for the split {split!r} in {printable(self.root)}" + (
        f", which has the splits {', '.join(sorted(layout.present))}" if layout.splits else
        f": of its {len(found)} images none is held out; give folders train, val and test"))
    # The classes of all splits, so that their numbers agree.
    folders = sorted({path.split("/")[depth] for path in found if path.count("/") > depth})
    self.classes = [printable(name) for name in folders] or None
    self.labels = None
    if folders:
      number = {name: i for i, name in enumerate(folders)}
      labels = np.array([number.get(path.split("/")[depth], -1) for path in paths])
      self.labels = labels if (labels >= 0).any() else None
    # Bytes in an array: millions of paths as Python strings are heavy to send to every worker.
    self._paths = np.array([os.fsencode(path) for path in paths])
    key = os.path.realpath(self.root)
    if key not in _told:
      _told.add(key)
      self._tell(found, splits, layout, total, others)

  def __len__(self) -> int:
    return len(self._paths)

  def paths(self) -> list[str]:
    """The images' paths relative to the folder, in their order."""
    return [os.fsdecode(bytes(path)) for path in self._paths]

  def _path(self, index: int) -> str:
    return os.fsdecode(bytes(self._paths[index]))

  def name(self, index: int) -> str:
    """The name of an image, without reading it."""
    return printable(self._path(index))

  def mark(self, index: int) -> tuple[int, int]:
    """What tells whether an image has changed: bytes, and nanoseconds of its time."""
    return file_mark(self.root / self._path(index))

  def encoded(self, index: int) -> bytes:
    """The bytes of an image's file.

    Raises:
      DamagedImage: it cannot be read.
      FileNotFoundError: the folder is gone.
    """
    try:
      return (self.root / self._path(index)).read_bytes()
    except OSError as error:
      self._check_there()
      raise DamagedImage(self.name(index), error.strerror or error) from error

  def __getitem__(self, index: int) -> dict:
    name = self.name(index)
    label = -1 if self.labels is None else int(self.labels[index])
    try:
      image = self._decoder(self.root / self._path(index), name)
    except DamagedImage:
      self._check_there()
      raise
    return {"image": image, "label": label, "name": name}

  def _check_there(self):
    """Raises a FileNotFoundError where not an image, but the whole folder is gone."""
    if not self.root.is_dir():
      raise FileNotFoundError(f"the folder of images {printable(self.root)} is not there any "
                              "more") from None

  def _tell(self, found: list[str], splits: list[str], layout: Layout, total: int,
            others: collections.Counter):
    """Logs how the folder was read, what was left out, and what decoding loses."""
    counts = collections.Counter(splits)
    text = f"{printable(self.root)}: {len(found):,} images"
    text += f" in {len(self.classes):,} classes" if self.classes else " without classes"
    if layout.splits:
      names = ", ".join(f"{printable(name)} ({split})" if name != split else name
                        for name, split in layout.splits.items())
      text += f"; the folders {names} are splits"
    else:
      text += "; no folders are splits"
    text += f" ({', '.join(f'{name} {counts[name]:,}' for name in ('train', 'val', 'test'))})"
    log.info("%s", text)
    labelled = {split for path, split in zip(found, splits) if path.count("/") > layout.depth}
    for split in sorted(counts.keys() - labelled) if self.classes else ():
      log.info("%s: %s has no labels, for its images lie in no folders", printable(self.root),
               split)
    left_out = [f"{total - len(found):,} images" + (
      f" in the folders {_some(layout.left_out)}" if layout.left_out else
      " beside the folders of the splits")] if total > len(found) else []
    left_out += [_counts(others)] if others else []
    if left_out:
      level = logging.WARNING if total > len(found) else logging.INFO
      log.log(level, "%s: left out %s", printable(self.root), ", and ".join(left_out))
    samples = [self.root / found[i] for i in spread(len(found))]
    for note in pixel_notes(samples, self._decoder):
      log.warning("%s: %s", printable(self.root), note)


def _counts(others: collections.Counter) -> str:
  kinds = [f"{count:,} {printable(suffix) or 'without a suffix'}"
           for suffix, count in sorted(others.items(), key=lambda item: (-item[1], item[0]))]
  return f"{_some(kinds)} files"


def _some(names, most: int = 5) -> str:
  names = [printable(name) for name in names]
  more = len(names) - most
  return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
