"""Images with their captions."""

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinov3_jax.data.pairs.captions import NO_CAPTION, Captions, usable
from dinov3_jax.data.sources.base import Source

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pairs:
  """A source whose images have a caption or more each; see `data.sources.Source`.

  `pairs[i]` is what the source of the images gives, and `captions`, a list of strings.

  Attributes:
    images: the source of the images, of which some may have no caption.
    chosen: int [n], those that have one.
    captions: of these.
  """

  images: Source
  chosen: np.ndarray
  captions: Captions

  def __len__(self) -> int:
    return len(self.chosen)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.images[int(self.chosen[index])] | {"captions": self.captions[index]}

  @property
  def labels(self) -> np.ndarray | None:
    """The images' labels, if they have any."""
    return None if self.images.labels is None else np.asarray(self.images.labels)[self.chosen]

  @property
  def classes(self) -> list[str] | None:
    """The names of the labels."""
    return self.images.classes

  @property
  def blocks(self) -> np.ndarray | None:
    """Where images that are read together begin, if they are, ending with the number of pairs."""
    blocks = getattr(self.images, "blocks", None)
    return None if blocks is None else np.unique(np.searchsorted(self.chosen, blocks))


def pair(images: Source, captions: Sequence[Sequence[Any]], what: str,
         faults: Mapping[str, int] = {}) -> Pairs:
  """Images and what was found as their captions; says what is left out.

  Args:
    images: the source.
    captions: for each image, texts or what stands in their place.
    what: the source's name, for the log.
    faults: counts of what was left out before, by what it is.

  Raises:
    ValueError: no image has a caption.
  """
  faults = collections.Counter(faults)
  kept = [usable(texts, faults) for texts in captions]
  chosen = np.flatnonzero([len(texts) > 0 for texts in kept])
  faults[NO_CAPTION] += len(kept) - len(chosen)
  told = ", ".join(f"{count:,} {name}" for name, count in sorted(faults.items()) if count)
  if not len(chosen):
    raise ValueError(f"no image of {what} has a caption" + (f" ({told})" if told else ""))
  if told:
    log.warning("%s: left out %s", what, told)
  result = Captions([kept[i] for i in chosen])
  log.info("%s: %s images with %s captions", what, f"{len(chosen):,}", f"{result.count:,}")
  return Pairs(images, chosen, result)
