"""The stream of images and captions, made as that of crops is: see `data.pipeline`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np

from dinov3_jax.data.crops import random_window, resize
from dinov3_jax.data.order import BlockShuffle, Mixed, Shuffle, order_of
from dinov3_jax.data.pairs.captions import drawn
from dinov3_jax.data.pipeline import PART, SEEN, Pipeline, Seen, check_stream, read_or_next
from dinov3_jax.data.sources.base import Source
from dinov3_jax.text.tokenizer import Tokenizer

VIEWS, WORDS = range(2)  # what randomness is for


class View(Protocol):
  """What a batch has of an image.

  Attributes:
    name: its key in a batch.
    shape, dtype: of one of them.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype

  def __call__(self, item: dict, rng: np.random.Generator) -> np.ndarray:
    """Of an item of the source."""


@dataclasses.dataclass(frozen=True)
class Windows:
  """Random windows of images (torchvision's RandomResizedCrop), half of them mirrored or none.

  Raises:
    ValueError: a scale that is no range of shares.
  """

  size: int
  scale: tuple[float, float]
  horizontal_flip: bool

  name = "images"
  dtype = np.dtype(np.uint8)

  @classmethod
  def of(cls, images) -> "Windows":
    """Those that the section `images` of a run describes."""
    return cls(images.size, tuple(images.scale), images.horizontal_flip)

  def __post_init__(self):
    if not 0 < self.scale[0] <= self.scale[1] <= 1:
      raise ValueError(f"images.scale {self.scale} must be a range of shares of the image in "
                       "(0, 1]")

  @property
  def shape(self) -> tuple[int, int, int]:
    return self.size, self.size, 3

  def __call__(self, item: dict, rng: np.random.Generator) -> np.ndarray:
    image = item["image"]
    top, left, height, width = random_window(*image.shape[:2], self.scale, rng)
    view = resize(image[top:top + height, left:left + width], self.size, self.size)
    return cv2.flip(view, 1) if rng.random() < 0.5 and self.horizontal_flip else view


@dataclasses.dataclass(frozen=True)
class Stored:
  """One of an image's views in a cache of features, see `cached.CachedPairs`."""

  shape: tuple[int, ...]
  dtype: np.dtype

  name = "features"

  def __call__(self, item: dict, rng: np.random.Generator) -> np.ndarray:
    views = item["features"]
    return views[rng.integers(len(views))]


@dataclasses.dataclass(frozen=True)
class PairMaker:
  """Makes the parts of this process's share of the batch of any step; see `make_pair_pipeline`."""

  source: Source
  view: View
  tokenizer: Tokenizer
  context: int
  batch_size: int
  rows: tuple[int, ...]
  seed: int
  order: Shuffle | BlockShuffle | Mixed

  @property
  def images(self) -> int:
    """Of this process, in a batch."""
    return len(self.rows)

  @property
  def parts(self) -> int:
    """Of this process, in a batch."""
    return -(-self.images // PART)

  def __call__(self, place: int) -> dict:
    """The part at a place of the stream: that many after the first of step 0."""
    step, part = divmod(place, self.parts)
    rows = self.rows[part * PART : (part + 1) * PART]
    views = np.empty((len(rows), *self.view.shape), self.view.dtype)
    captions, replaced, damaged = [], 0, []
    for i, row in enumerate(rows):
      number = step * self.batch_size + row
      item, messages = read_or_next(self.source, self.order, self.order(step, number))
      replaced += bool(messages)
      damaged += messages
      views[i] = self.view(item, self._rng(VIEWS, number))
      captions.append(drawn(item["captions"], self._rng(WORDS, number)))
    return {self.view.name: views, "tokens": self.tokenizer(captions, self.context),
            SEEN: Seen(replaced, damaged, None)}

  @property
  def nbytes(self) -> int:
    """The size of a part, at most."""
    of_view = math.prod(self.view.shape) * self.view.dtype.itemsize
    return min(PART, self.images) * (of_view + 4 * self.context)

  def _rng(self, purpose: int, number: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, purpose, number])


def make_pair_pipeline(pairs: Source, view: View, tokenizer: Tokenizer, batch_size: int, *,
                       context: int, shards: int = 1, local_shards: Sequence[int] | None = None,
                       seed: int = 0, workers: int = 0, max_damaged: float = 0.01) -> Pipeline:
  """The stream of `images`, uint8 [b, S, S, 3], or `features`, and `tokens`, int32 [b, context].

  Of an image a view is drawn, and of its captions one. Each pass is shuffled anew. Randomness
  follows from the seed and the pair's number in the stream, so that a restart, other workers and
  other processes make the same batches.

  Args:
    pairs: images and captions, or cached features and captions.
    view: what is taken of an item: `Windows` of an image, or one that is `Stored`.
    tokenizer: of the captions.
    batch_size: pairs a step, over all processes.
    context: ids of a caption.
    shards: data shards, over all processes.
    local_shards: those that this process makes, in order; None: all.
    seed, workers, max_damaged: as for `data.pipeline.make_pipeline`.

  Raises:
    ValueError: sizes or counts that do not fit together.
  """
  check_stream(batch_size, shards, seed, workers, max_damaged)
  of_shard = batch_size // shards
  rows = tuple(shard * of_shard + i
               for shard in (range(shards) if local_shards is None else local_shards)
               for i in range(of_shard))
  maker = PairMaker(pairs, view, tokenizer, context, batch_size, rows, seed, order_of(pairs, seed))
  return Pipeline(maker, workers, max_damaged)
