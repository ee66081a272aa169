"""A source over files that hold many encoded images: tars, zips, parquet, ArrayRecord, lists."""

import functools
import logging
from typing import Protocol

import numpy as np

from dinov3_jax.data.decode import DamagedImage, Decoder
from dinov3_jax.data.sources.index import Index
from dinov3_jax.data.sources.marks import NONE, Mark
from dinov3_jax.data.sources.notes import pixel_notes, spread
from dinov3_jax.data.sources.ranges import Ranges
from dinov3_jax.data.sources.splits import SPLITS
from dinov3_jax.data.walk import printable

log = logging.getLogger(__name__)

_told = set()  # the sources that this process has described


class Reader(Protocol):
  """Reads the bytes of an image from an index; it pickles, and threads share it.

  It raises DamagedImage for one that cannot be read, OSError if its file cannot. Where images are
  files of their own, its `mark` gives that of one.
  """

  def __call__(self, index: Index, row: int) -> bytes: ...


class EncodedSource:
  """A split of the images of an `Index`.

  Attributes:
    classes, labels: see `Source`.
    index, rows: the index, and which of its images are in the split.
    blocks: where the images that are read together begin, int64, ending with their number; None
      where each is read on its own.
  """

  def __init__(self, what: str, index: Index, reader: Reader, split: str, decoder: Decoder,
               in_blocks: bool = False):
    """Args:
      what: the set as the user named it.
      index: of all its images.
      reader: of their bytes.
      split: train, val, test or all.
      decoder: of the images.
      in_blocks: whether the reader reads all images of one `offset` at once.

    Raises:
      ValueError: no image in the split.
    """
    self.index, self._reader, self._decoder, self._what = index, reader, decoder, what
    wanted = range(len(SPLITS)) if split == "all" else [SPLITS.index(split)]
    self.rows = np.flatnonzero(np.isin(index.split, wanted)).astype(np.int64)
    counts = {name: int((index.split == i).sum()) for i, name in enumerate(SPLITS)}
    if not len(self.rows):
      raise ValueError(f"no image for the split {split!r} in {printable(what)}, which has " +
                       ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    labels = np.asarray(index.label)[self.rows].astype(np.int64)
    self.labels = labels if (labels >= 0).any() else None
    self.classes, self.blocks = index.classes, None
    if in_blocks:
      places = np.stack([index.file[self.rows], index.offset[self.rows]])
      starts = np.flatnonzero((np.diff(places) != 0).any(0)) + 1
      self.blocks = np.array([0, *starts, len(self.rows)], np.int64)
    if what not in _told:
      _told.add(what)
      self._tell(counts)

  def __len__(self) -> int:
    return len(self.rows)

  def name(self, index: int) -> str:
    """The name of an image, without reading it."""
    return printable(self.index.name(int(self.rows[index])))

  def mark(self, index: int) -> Mark:
    """What tells whether an image has changed: of its file, or of the one that it is in."""
    row = int(self.rows[index])
    own = getattr(self._reader, "mark", None)
    known = own(self.index, row) if own else self.index.marks[int(self.index.file[row])]
    return tuple(known) if known else NONE

  def encoded(self, index: int) -> bytes:
    """The bytes of an image as they are stored.

    Raises:
      DamagedImage: they cannot be read.
      OSError: their file cannot.
    """
    return self._reader(self.index, int(self.rows[index]))

  def __getitem__(self, index: int) -> dict:
    name = self.name(index)
    image = self._decoder(self.encoded(index), name)
    return {"image": image, "label": -1 if self.labels is None else int(self.labels[index]),
            "name": name}

  def _tell(self, counts: dict[str, int]):
    files, index = self.index.files, self.index
    text = f"{len(index):,} images in {len(files):,} files" if len(files) > 1 else (
      f"{len(index):,} images")
    text += f", {len(self.classes):,} classes" if self.classes else ", without classes"
    log.info("%s: %s; %s (%s); the index takes %.1f MB", printable(self._what), text, index.note,
             ", ".join(f"{name} {count:,}" for name, count in counts.items()), index.nbytes / 1e6)
    left_out = len(index) - sum(counts.values())
    if left_out:
      log.warning("%s: left out %s images that are in no split", printable(self._what),
                  f"{left_out:,}")
    for note in pixel_notes(self._samples(), self._decoder):
      log.warning("%s: %s", printable(self._what), note)

  def _samples(self):
    for i in spread(len(self)):
      try:
        yield self.encoded(i)
      except (DamagedImage, OSError):  # it is named when its turn comes
        continue


def from_ranges(ranges: Ranges) -> Reader:
  """The reader of images that lie in their files as `offset` and `size` say."""
  return functools.partial(_read_range, ranges)


def _read_range(ranges: Ranges, index: Index, row: int) -> bytes:
  return ranges.read(int(index.file[row]), int(index.offset[row]), int(index.size[row]), row)
