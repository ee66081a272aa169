"""The stream of training batches: Grain around pure functions of a step's number.

Everything random in a batch is drawn from (seed, what it is for, its global number), so the stream
is the same for any number of workers and processes, and step n is reached without the steps before.
Workers make parts of batches: the first batch is there sooner, and what waits in memory does not
grow with the batch.
"""

import atexit
import collections
import dataclasses
import errno
import functools
import logging
import math
import os
import re
import signal
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from dinov3_jax.data import shared_memory
from dinov3_jax.data.crops import MultiCrop, dtype_of
from dinov3_jax.data.decode import DamagedImage
from dinov3_jax.data.masks import mask_counts, shard_masks
from dinov3_jax.data.order import BlockShuffle, Mixed, Shuffle, order_of
from dinov3_jax.data.sources.base import Source
from dinov3_jax.data.sources.mixture import Mixture
from dinov3_jax.data.walk import printable
from dinov3_jax.data.worker import start_worker

log = logging.getLogger(__name__)

FULL = (f"{shared_memory.FOLDER} is full; take fewer data.workers, or give it more (docker run "
        "--shm-size=8g)")
MIN_SEEN = 100  # images, before a share of damaged ones means anything
SEEN = "seen"  # travels with a part from the workers to the main process
LAST = 2**40  # part; there are no more
PART = 32  # images that a worker makes at once
CROPS, MASKS, SIZES = range(3)  # what randomness is for


class DataError(OSError):
  """There are no more batches, for the reason that is given in one line."""


class TooManyDamaged(DataError):
  """More of the images cannot be read than is tolerated."""


class Seen(NamedTuple):
  """What is known of the images of a part: how many have another in their place, why those that are
  damaged cannot be read, and how many come from each part of a mixture."""

  replaced: int
  damaged: list[str]
  shares: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class PartMaker:
  """Makes the parts of this process's share of the batch of any step; see `make_pipeline` for the
  attributes."""

  source: Source
  multi_crops: tuple[MultiCrop, ...]
  size_weights: tuple[float, ...]
  batch_size: int
  shards: int
  seed: int
  mask_probability: float
  mask_ratio: tuple[float, float]
  mask_circular_shift: bool
  local_shards: tuple[int, ...]
  order: Shuffle | BlockShuffle | Mixed

  @property
  def images(self) -> int:
    """Of this process, in a batch."""
    return self.batch_size // self.shards * len(self.local_shards)

  @property
  def parts(self) -> int:
    """Of this process, in a batch."""
    return -(-self.images // PART)

  def __call__(self, place: int) -> dict:
    """The part at a place of the stream: that many after the first of step 0.

    Masks come with the part in which their shard begins.
    """
    step, part = divmod(place, self.parts)
    crop = self.multi_crops[self._rng(SIZES, step).choice(len(self.multi_crops),
                                                          p=self.size_weights)]
    of_shard = self.batch_size // self.shards
    mine = range(part * PART, min((part + 1) * PART, self.images))
    numbers = [step * self.batch_size + self.local_shards[i // of_shard] * of_shard + i % of_shard
               for i in mine]
    arrays = {name: np.empty((len(numbers), *shape), dtype_of(name))
              for name, shape in crop.shapes.items()}
    replaced, damaged = 0, []
    shares = np.zeros(len(self.source.members), int) if self._is_mixture else None
    for i, number in enumerate(numbers):
      index = self.order(step, number)
      if self._is_mixture:
        shares[self.source.part(index)] += 1
      item, messages = read_or_next(self.source, self.order, index)
      replaced += bool(messages)
      damaged += messages
      crop(item["image"], self._rng(CROPS, number),
           {name: array[i] for name, array in arrays.items()})
    begun = [shard for i, shard in enumerate(self.local_shards) if i * of_shard in mine]
    masks = self._masks(step, begun, crop) if begun else {}
    return {**arrays, **masks, SEEN: Seen(replaced, damaged, shares)}

  @property
  def _is_mixture(self) -> bool:
    return isinstance(self.source, Mixture)

  @property
  def nbytes(self) -> int:
    """The size of the largest part, at most."""
    def size(crop):  # of masks, indices and weights a patch takes 1 + 4 + 4 bytes
      masks = 2 * (crop.global_size // crop.patch_size) ** 2 * 9
      of_shard = self.batch_size // self.shards
      crops = sum(math.prod(shape) * np.dtype(dtype_of(name)).itemsize
                  for name, shape in crop.shapes.items())
      return min(PART, self.images) * crops + -(-min(PART, self.images) // of_shard) * (
        of_shard * masks)

    return max(map(size, self.multi_crops))

  def _rng(self, purpose: int, *number: int) -> np.random.Generator:
    return np.random.default_rng([self.seed, purpose, *number])

  def _masks(self, step: int, of_shards: Sequence[int], crop: MultiCrop) -> dict[str, np.ndarray]:
    masks, indices, weights = zip(*(
      shard_masks(self._rng(MASKS, step, shard), self.batch_size // self.shards,
                  crop.global_size // crop.patch_size, self.mask_probability, self.mask_ratio,
                  self.mask_circular_shift)
      for shard in of_shards))
    return {"masks": np.concatenate(masks), "mask_indices": np.stack(indices),
            "mask_weights": np.stack(weights)}


def read_or_next(source: Source, order: Shuffle | BlockShuffle | Mixed, index: int
                 ) -> tuple[dict, list[str]]:
  """The item at `index`, or the next one that can be read, and why those before cannot.

  Raises:
    TooManyDamaged: none can be read.
  """
  damaged = []
  for _ in range(len(source)):
    try:
      return source[index], damaged
    except DamagedImage as error:
      damaged.append(str(error))
      index = order.after(index)
  raise TooManyDamaged(f"none of the {len(source):,} images can be read ({damaged[0]}); "
                       "check the data set")


class Pipeline:
  """An endless iterator of batches, whose position is one number.

  `next()` gives a dict of numpy arrays, as its maker makes it. From `make_pipeline` they are
  `global_crops` [b, 2, G, G, 3] and `local_crops` [b, L, l, l, 3] uint8, `gram_crops`
  [b, 2, g, g, 3] uint8 where there are any, `masks` [b, 2, N] bool, `mask_indices` int32 and
  `mask_weights` float32 [s, M]; b images and s data shards are this process's part of the whole
  batch.
  """

  def __init__(self, maker: PartMaker, workers: int, max_damaged: float):
    self._maker, self._workers, self._max_damaged = maker, workers, max_damaged
    self._seen = self._damaged = self._shares = 0
    self._named = set()
    self._step, self._parts = 0, None
    self._at_exit = functools.partial(_close, weakref.ref(self))

  def __iter__(self):
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    try:
      if self._parts is None:
        self._parts = self._start()
        atexit.register(self._at_exit)
      batch = self._join(next(self._parts) for _ in range(self._maker.parts))
    except Exception as error:
      self.close()
      log.debug("no more batches", exc_info=error)
      raise _explain(error) from None
    self._step += 1
    self._check()
    return batch

  def _join(self, parts: Iterator[dict]) -> dict[str, np.ndarray]:
    """A batch of its parts, each of which is copied once, out of shared memory."""
    batch, small, at = {}, collections.defaultdict(list), 0
    for part in parts:
      self._note(part.pop(SEEN))
      for name, array in part.items():
        if name.startswith("mask"):
          small[name].append(shared_memory.own(array))
        elif self._maker.parts == 1:
          batch[name] = shared_memory.own(array)
        else:
          if name not in batch:
            batch[name] = np.empty((self._maker.images, *array.shape[1:]), array.dtype)
          shared_memory.own(array, batch[name][at : at + len(array)])
      at += next(len(array) for name, array in part.items() if not name.startswith("mask"))
    return batch | {name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
                    for name, arrays in small.items()}

  def get_state(self) -> dict[str, int]:
    """The position, ready for JSON: the number of batches given, equal in all processes."""
    return {"step": self._step}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes to a position; the next batch is the one that followed `get_state` there."""
    self.close()
    self._step = int(state["step"])

  def close(self) -> None:
    """Ends the workers; the next batch starts new ones."""
    if self._parts is not None:
      self._parts.close()
      self._parts = None
      atexit.unregister(self._at_exit)
      shared_memory.settle()

  def _start(self) -> grain.DatasetIterator:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags, which a script may not have parsed
    # A part is one element, so that the order does not depend on who makes it.
    places = grain.MapDataset.range(self._step * self._maker.parts, LAST).map(self._maker)
    if not self._workers:
      threads = min(8, os.cpu_count() or 1)
      return iter(places.to_iter_dataset(grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(threads + 1, self._maker.parts))))
    serial = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    parts = places.to_iter_dataset(serial)
    if not self._fits():
      parts = grain.experimental.WithOptionsIterDataset(
        parts, grain.experimental.DatasetOptions(min_shm_size=2**62))
    options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1)
    return iter(parts.mp_prefetch(options, start_worker))

  def _fits(self) -> bool:
    """Whether shared memory has room for what workers make; says so where it has not."""
    # Of each worker, one waits to be put in its queue, one is in there, one waits to be put in the
    # queue of the thread that reads it, and one is in there; one more is being copied.
    needed, free = (4 * self._workers + 1) * self._maker.nbytes, shared_memory.free()
    if free is None or needed <= free:
      return True
    log.warning(
      "parts of %s take up to %s of shared memory with %d workers, and %s has %s left: they go "
      "through pipes, which is slower; give it more (docker run --shm-size=%dg)",
      _size(self._maker.nbytes), _size(needed), self._workers, shared_memory.FOLDER, _size(free),
      max(-(-needed // 2**30), 1))
    return False

  def _note(self, seen: Seen) -> None:
    self._damaged += seen.replaced
    for message in seen.damaged:
      if message not in self._named:
        self._named.add(message)
        log.warning("Damaged image, replaced by the next one: %s.", message)
    if seen.shares is not None:
      self._shares = self._shares + seen.shares

  def _check(self) -> None:
    """Counts a batch; raises if too much of it was damaged."""
    self._seen += self._maker.images
    if self._seen >= MIN_SEEN and self._damaged > self._max_damaged * self._seen:
      raise TooManyDamaged(
        f"{self._damaged} of {self._seen} images ({self._damaged / self._seen:.1%}) cannot be "
        f"read, more than max_damaged={self._max_damaged:.1%}; the log names them, for example "
        f"{next(iter(self._named))}")
    taken = self._seen // self._maker.images
    if np.any(self._shares) and taken >= 100 and str(taken).rstrip("0") == "1":
      shares = zip(self._maker.source.members, self._shares / self._shares.sum())
      log.info("of the images of %s batches: %s", f"{taken:,}", ", ".join(
        f"{printable(member.name)} {share:.1%}" for member, share in shares))


def _close(reference: weakref.ref):
  """Closes a pipeline that is still there when the program ends."""
  pipeline = reference()
  if pipeline is not None:
    pipeline.close()


def _size(count: int) -> str:
  return f"{count / 2**20:,.0f} MiB"


def _explain(error: Exception) -> DataError:
  """One line on what ended the batches."""
  if isinstance(error, DataError):
    return type(error)(str(error))
  died = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
  if died:
    code = int(died[1])
    try:
      how = f"was ended by {signal.Signals(-code).name}"
    except ValueError:
      how = "ended by itself"
    why = {-signal.SIGKILL: ", which is what a machine without memory does: take fewer "
                            "data.workers or smaller batches",
           -signal.SIGBUS: f": {FULL}"}
    return DataError(f"a process that makes batches {how} (exit code {code})"
                     + why.get(code, "; with data.workers=0 there are none, and errors say more"))
  if isinstance(error, MemoryError):
    return DataError("there is no memory left to make batches: take fewer data.workers, smaller "
                     "batches, or a lower data.max_pixels")
  reason = " ".join(str(error).split())
  if isinstance(error, OSError) and error.errno == errno.ENOSPC:
    reason += f": {FULL}"
  if not isinstance(error, OSError):
    reason = f"{type(error).__name__}: {reason}"
  return DataError(f"no more batches can be made: {reason}")


def check_stream(batch_size: int, shards: int, seed: int, workers: int, max_damaged: float):
  """Raises a ValueError for numbers of which no stream can be made; see `make_pipeline`."""
  if batch_size < 1 or batch_size % shards:
    raise ValueError(f"a batch of {batch_size} images cannot be spread over {shards} data shards; "
                     f"take a multiple of {shards}")
  if workers < 0:
    raise ValueError(f"workers (data.workers) is {workers}: take a number of processes, or 0 for "
                     "threads of this one")
  if not 0 <= max_damaged <= 1:
    raise ValueError(f"max_damaged {max_damaged} must be a share of the images, in [0, 1]")
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed {seed} must lie in [0, 2**32)")


def make_pipeline(source: Source, multi_crops: Sequence[MultiCrop], size_weights: Sequence[float],
                  batch_size: int, *, shards: int = 1, seed: int = 0, workers: int = 0,
                  mask_probability: float = 0.5, mask_ratio: tuple[float, float] = (0.1, 0.5),
                  mask_circular_shift: bool = False, max_damaged: float = 0.01,
                  local_shards: Sequence[int] | None = None) -> Pipeline:
  """Builds the stream of training batches.

  Each pass over the source is shuffled anew; a mixture is drawn by its weights (see `order`). With
  several resolutions every step draws one for its
  whole batch. iBOT masks are made for each data shard on its own (see `masks`).

  Args:
    source: of images.
    multi_crops: one for each resolution.
    size_weights: their probabilities.
    batch_size: images a step, over all processes.
    shards: data shards, over all processes.
    seed: below 2**32; all randomness follows from it.
    workers: processes that make parts of batches; 0 takes threads of this one. They hand parts over
      in shared memory, or, where that has too little room, through pipes.
    mask_probability, mask_ratio, mask_circular_shift: see `masks.shard_masks`.
    max_damaged: share of unreadable images, of those drawn, above which iteration raises
      `TooManyDamaged`, once 100 images were seen. Below it, the next readable image of the source
      stands in; iteration stops anyhow where there is none.
    local_shards: those that this process makes, one after the other; None: all.

  Returns:
    The pipeline. Whatever keeps it from making a batch is raised by `next` as a `DataError`.

  Raises:
    ValueError: sizes or counts that do not fit together.
  """
  multi_crops, size_weights = tuple(multi_crops), tuple(size_weights)
  if len(multi_crops) != len(size_weights) or not multi_crops:
    raise ValueError(f"{len(multi_crops)} crop sizes but {len(size_weights)} size weights; "
                     "give one weight for each")
  if min(size_weights) < 0 or abs(sum(size_weights) - 1) > 1e-6:
    raise ValueError(f"size weights {size_weights} must be probabilities with a sum of 1")
  check_stream(batch_size, shards, seed, workers, max_damaged)
  mask_counts(0, 0, mask_probability, mask_ratio)  # raises now rather than in a worker
  maker = PartMaker(
    source, multi_crops, size_weights, batch_size, shards, seed, mask_probability,
    tuple(mask_ratio), mask_circular_shift,
    tuple(range(shards) if local_shards is None else local_shards), order_of(source, seed))
  return Pipeline(maker, workers, max_damaged)
