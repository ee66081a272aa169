"""Several sources as one, drawn with weights (paper, section 3.1)."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from dinov3_jax.data.decode import Decoder
from dinov3_jax.data.sources import parts as mix
from dinov3_jax.data.sources.base import Source
from dinov3_jax.data.sources.marks import Mark, mark
from dinov3_jax.data.sources.parts import Part, probabilities
from dinov3_jax.data.sources.subset import Subset, places_of
from dinov3_jax.data.walk import printable

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Member:
  """An open part: `probability` is that of an image in mixed batches, or of a homogeneous batch."""

  name: str
  source: Source
  probability: float
  homogeneous: bool = False


class Mixture:
  """The images of all parts, one part after the other; `data.order` draws from them.

  Labels and classes are those of one part, the first that is labelled, homogeneous ones first: the
  classes of different sets do not mean the same. All other images have none.
  """

  def __init__(self, members: Sequence[Member]):
    self.members = tuple(members)
    self.starts = np.cumsum([0, *(len(member.source) for member in members)])
    self.labels = self.classes = None
    self.labelled = next((i for i in sorted(range(len(members)), key=lambda i: (
      not members[i].homogeneous, i)) if members[i].source.labels is not None), None)
    if self.labelled is not None:
      source = members[self.labelled].source
      self.classes, self.labels = source.classes, np.full(len(self), -1)
      start = self.starts[self.labelled]
      self.labels[start : start + len(source)] = source.labels

  def __len__(self) -> int:
    return int(self.starts[-1])

  def part(self, index: int) -> int:
    """Which part an image is of."""
    return int(np.searchsorted(self.starts, index, side="right")) - 1

  def name(self, index: int) -> str:
    """The name of an image, after that of its part."""
    part = self.part(index)
    member = self.members[part]
    return f"{member.name}/{member.source.name(int(index - self.starts[part]))}"

  def mark(self, index: int) -> Mark:
    """What tells whether an image has changed."""
    part = self.part(index)
    return mark(self.members[part].source, int(index - self.starts[part]))

  def encoded(self, index: int) -> bytes:
    """The bytes of an image as they are stored."""
    part = self.part(index)
    return self.members[part].source.encoded(int(index - self.starts[part]))

  def __getitem__(self, index: int) -> dict:
    part = self.part(index)
    item = self.members[part].source[int(index - self.starts[part])]
    label = -1 if self.labels is None else int(self.labels[index])
    return {**item, "label": label, "name": f"{self.members[part].name}/{item['name']}"}


def labelled(source: Source) -> Source:
  """Of a mixture, the part whose labels it has, if any; all other sources as they are."""
  if isinstance(source, Mixture) and source.labelled is not None:
    return source.members[source.labelled].source
  return source


def open_parts(parts: Sequence[Part], split: str, decoder: Decoder, cache_gb: float = 0.0
               ) -> Source:
  """Opens the parts of a mixture.

  Args:
    parts: with the splits of them that are trained on. Where `Part.images` is 0, the source is
      counted.
    split: "train" or "all" for the mixture. "val" and "test" are those of the one part whose labels
      the mixture has, if that part is trained on its split train alone.
    decoder, cache_gb: as for `open_source`.

  Raises:
    ValueError: parts that do not fit together, or that cannot be opened; no part holds out images.
  """
  from dinov3_jax.data.sources.opening import open_source
  opened = {}

  def source_of(part):
    key = part.source, part.split
    if key not in opened:
      opened[key] = open_source(*key, decoder, cache_gb)
    if part.names is None:
      return opened[key]
    return Subset(opened[key], places_of(part.names, opened[key], f"the list of {part.name}"))

  sources = [source_of(part) for part in parts]
  counted = [dataclasses.replace(part, images=len(source), names=None)
             for part, source in zip(parts, sources)]
  members = [Member(part.name, source, probability, part.homogeneous)
             for part, source, probability in zip(parts, sources, probabilities(counted))]
  mixture = Mixture(members)
  if split in ("train", "all"):
    alone = sum(member.probability for member in members if member.homogeneous)
    log.info("a mixture: %s", ", ".join(
      f"{printable(member.name)} " + (
        f"{member.probability:.1%} of the batches, on its own" if member.homogeneous else
        f"{member.probability * (1 - alone):.1%}") + f" ({len(member.source):,} images)"
      for member in members))
    return mixture
  part = None if mixture.labelled is None else parts[mixture.labelled]
  if part is None or part.split != "train":
    raise ValueError("the mixture holds out no images: " + (
      "no part has labels" if part is None else
      f"its part {printable(part.name)}, which has labels, is trained on all of its images"))
  return open_source(part.source, split, decoder, cache_gb)


def open_mixture(path: str, split: str, decoder: Decoder, cache_gb: float = 0.0) -> Source:
  """Opens the mixture that a mix.json describes, as `python -m dinov3_jax.curate mix` writes it.

  Paths in it that are not whole are taken from the working directory, as when it was written.

  Raises:
    ValueError: from `parts.read` and `open_parts`.
  """
  folder = pathlib.Path(os.path.expanduser(path)).parent
  return open_parts(mix.read(folder), split, decoder, cache_gb)
