"""Which image comes at which place of the stream: pure functions of the seed, the step and the
number of the image, so that no worker, process or restart changes anything."""

import functools
import hashlib
import math

import grain
import numpy as np

from dinov3_jax.data.sources.base import Source
from dinov3_jax.data.sources.mixture import Mixture
from dinov3_jax.data.sources.parquet import GROUPS


class Shuffle:
  """Passes over all images, each in an order of its own."""

  def __init__(self, count: int, seed: int):
    self._count, self._order = count, grain.MapDataset.range(count).shuffle(seed).repeat()

  def __call__(self, step: int, number: int) -> int:
    """The index of the image with this number, counted over all batches."""
    del step
    return int(self._order[number])

  def after(self, index: int) -> int:
    """The one that stands in for an image that cannot be read."""
    return (index + 1) % self._count


class BlockShuffle:
  """Passes over images that are read in blocks: blocks are shuffled, and the images of some of them
  that follow one another are shuffled together, so that few blocks are read at a time.

  Args:
    blocks: their starts, ending with the number of images, int [n + 1].
    seed: of all orders.
    mixed: how many blocks are shuffled together.
  """

  def __init__(self, blocks: np.ndarray, seed: int, mixed: int = GROUPS):
    self._blocks, self._seed, self._mixed = np.asarray(blocks), seed, mixed
    self._turn = functools.lru_cache(2)(self._turn)
    self._images = functools.lru_cache(4)(self._images)

  def __reduce__(self):
    return BlockShuffle, (self._blocks, self._seed, self._mixed)

  def __call__(self, step: int, number: int) -> int:
    """The index of the image with this number, counted over all batches."""
    del step
    turn, at = divmod(number, int(self._blocks[-1]))
    ends = self._turn(turn)[1]
    group = int(np.searchsorted(ends, at, side="right"))
    return int(self._images(turn, group)[at - (ends[group - 1] if group else 0)])

  def after(self, index: int) -> int:
    """The one that stands in for an image that cannot be read."""
    return (index + 1) % int(self._blocks[-1])

  def _turn(self, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """The blocks of a pass in their order, and how many images there are up to each group."""
    rng = np.random.default_rng([self._seed, turn])
    order = rng.permutation(len(self._blocks) - 1)
    sizes = np.diff(self._blocks)[order]
    starts = range(0, len(order), self._mixed)
    return order, np.cumsum(np.add.reduceat(sizes, starts))

  def _images(self, turn: int, group: int) -> np.ndarray:
    """The images of a group of blocks in their order."""
    chosen = self._turn(turn)[0][group * self._mixed : (group + 1) * self._mixed]
    images = np.concatenate([np.arange(*self._blocks[block : block + 2]) for block in chosen])
    return np.random.default_rng([self._seed, turn, group]).permutation(images)


class Mixed:
  """Draws from the parts of a mixture.

  With the probability of a homogeneous part, all images of a step come from it. In other steps,
  each image is from the part whose exponential clock of that number rings first, which is a draw by
  weight: a part that is added later takes draws from the others, and moves none between them. (A
  homogeneous one must come after the other homogeneous ones for that, and takes steps from the
  mixed parts alone.)

  Which image of a part a number means does not depend on other parts either: those that are skipped
  leave it to the next pass, so that no image comes a second time within as many numbers as the part
  has images.
  """

  def __init__(self, mixture: Mixture, seed: int):
    self._seed, self._starts = seed, mixture.starts.tolist()
    self._names = [member.name for member in mixture.members]
    self._orders = [order_of(member.source, _number(seed, "order", member.name, 0) >> 32)
                    for member in mixture.members]
    share = [member.probability for member in mixture.members]
    alone = [i for i, member in enumerate(mixture.members) if member.homogeneous]
    self._alone = [(i, end) for i, end in zip(alone, np.cumsum([share[i] for i in alone]).tolist())]
    self._clocks = [(i, 1 / share[i]) for i in range(len(share)) if i not in alone]

  def part(self, step: int, number: int) -> int:
    """From which part an image of a step is drawn."""
    draw = _uniform(self._seed, "batch", "", step)
    for part, end in self._alone:
      if draw < end or (not self._clocks and part == self._alone[-1][0]):
        return part
    return min(self._clocks, key=lambda clock: -clock[1] * math.log(
      _uniform(self._seed, "image", self._names[clock[0]], number)))[0]

  def __call__(self, step: int, number: int) -> int:
    """The index, in the mixture, of an image of a step; numbers are counted over all batches."""
    part = self.part(step, number)
    return self._starts[part] + self._orders[part](step, number)

  def after(self, index: int) -> int:
    """The one, of the same part, that stands in for an image that cannot be read."""
    part = int(np.searchsorted(self._starts, index, side="right")) - 1
    return self._starts[part] + self._orders[part].after(index - self._starts[part])


def order_of(source: Source, seed: int) -> Shuffle | BlockShuffle | Mixed:
  """The order in which training draws from a source.

  Args:
    source: of the images.
    seed: below 2**32; it decides all orders.
  """
  if isinstance(source, Mixture):
    return Mixed(source, seed)
  blocks = getattr(source, "blocks", None)
  if blocks is not None and len(blocks) - 1 > GROUPS:
    return BlockShuffle(blocks, seed)
  return Shuffle(len(source), seed)


def _number(seed: int, purpose: str, name: str, number: int) -> int:
  """A uniform number of 64 bits that depends on nothing else."""
  text = f"{seed}\n{purpose}\n{number}\n{name}".encode("utf-8", "surrogateescape")
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _uniform(*key) -> float:
  """The same in (0, 1)."""
  return ((_number(*key) >> 12) + 0.5) * 2.0**-52
