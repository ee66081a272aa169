"""The stream of images and captions, made as that of crops is: see `data.pipeline`."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np

from dinov3_jax.data.crops import random_window, resize
from dinov3_jax.data.order import BlockShuffle, Mixed, Shuffle, order_of
from dinov3_jax.data.pairs.base import Pairs
from dinov3_jax.data.pairs.captions import drawn
from dinov3_jax.data.pipeline import PART, SEEN, Pipeline, Seen, check_stream, read_or_next
from dinov3_jax.text.tokenizer import Tokenizer

VIEWS, WORDS = range(2)  # what randomness is for


@dataclasses.dataclass(frozen=True)
class PairMaker:
  """Makes the parts of this process's share of the batch of any step; see `make_pair_pipeline`."""

  source: Pairs
  tokenizer: Tokenizer
  context: int
  size: int
  scale: tuple[float, float]
  horizontal_flip: bool
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
    images = np.empty((len(rows), self.size, self.size, 3), np.uint8)
    captions, replaced, damaged = [], 0, []
    for i, row in enumerate(rows):
      number = step * self.batch_size + row
      item, messages = read_or_next(self.source, self.order, self.order(step, number))
      replaced += bool(messages)
      damaged += messages
      images[i] = self._view(item["image"], self._rng(VIEWS, number))
      captions.append(drawn(item["captions"], self._rng(WORDS, number)))
    return {"images": images, "tokens": self.tokenizer(captions, self.context),
            SEEN: Seen(replaced, damaged, None)}

  @property
  def nbytes(self) -> int:
    """The size of a part, at most."""
    return min(PART, self.images) * (3 * self.size**2 + 4 * self.context)

  def _rng(self, purpose: int, number: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, purpose, number])

  def _view(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    top, left, height, width = random_window(*image.shape[:2], self.scale, rng)
    view = resize(image[top:top + height, left:left + width], self.size, self.size)
    return cv2.flip(view, 1) if rng.random() < 0.5 and self.horizontal_flip else view


def make_pair_pipeline(pairs: Pairs, tokenizer: Tokenizer, batch_size: int, *, context: int,
                       size: int, scale: tuple[float, float] = (0.08, 1.0),
                       horizontal_flip: bool = True, shards: int = 1,
                       local_shards: Sequence[int] | None = None, seed: int = 0, workers: int = 0,
                       max_damaged: float = 0.01) -> Pipeline:
  """The stream of `images`, uint8 [b, size, size, 3], and `tokens`, int32 [b, context].

  Of an image a window is drawn (torchvision's RandomResizedCrop), and of its captions one. Each
  pass is shuffled anew. Randomness follows from the seed and the pair's number in the stream, so
  that a restart, other workers and other processes make the same batches.

  Args:
    pairs: images and captions.
    tokenizer: of the captions.
    batch_size: pairs a step, over all processes.
    context: ids of a caption.
    size: side of the images, pixels.
    scale: least and greatest share of an image's area in a window.
    horizontal_flip: whether half of the windows are mirrored.
    shards: data shards, over all processes.
    local_shards: those that this process makes, in order; None: all.
    seed, workers, max_damaged: as for `data.pipeline.make_pipeline`.

  Raises:
    ValueError: sizes or counts that do not fit together.
  """
  check_stream(batch_size, shards, seed, workers, max_damaged)
  if not 0 < scale[0] <= scale[1] <= 1:
    raise ValueError(f"images.scale {tuple(scale)} must be a range of shares of the image in "
                     "(0, 1]")
  of_shard = batch_size // shards
  rows = tuple(shard * of_shard + i
               for shard in (range(shards) if local_shards is None else local_shards)
               for i in range(of_shard))
  order = order_of(pairs, seed)
  maker = PairMaker(pairs, tokenizer, context, size, tuple(scale), horizontal_flip, batch_size,
                    rows, seed, order)
  return Pipeline(maker, workers, max_damaged)
