"""Some images of a source, by their names."""

import collections
from collections.abc import Sequence

import numpy as np

from dinov3_jax.data.sources.base import Source
from dinov3_jax.data.sources.marks import Mark, mark
from dinov3_jax.data.walk import printable


class Subset:
  """Images of a source in an order of one's own, each as often as it is listed.

  Args:
    source: that has them.
    indices: which, int [n].
    labels: int [n], of `classes`, in place of the source's; None keeps these.
    classes: names of these labels.
  """

  def __init__(self, source: Source, indices: np.ndarray, labels: np.ndarray | None = None,
               classes: list[str] | None = None):
    self.source, self.indices = source, np.asarray(indices, np.int64)
    self._own = labels is not None
    if self._own:
      self.labels, self.classes = np.asarray(labels), classes
    else:
      self.labels = None if source.labels is None else np.asarray(source.labels)[self.indices]
      self.classes = source.classes

  def __len__(self) -> int:
    return len(self.indices)

  def name(self, index: int) -> str:
    """The name of an image, without reading it."""
    return self.source.name(int(self.indices[index]))

  def label(self, index: int) -> int:
    """The label of an image, -1 without one; it may take reading its record."""
    if self.labels is not None:
      return int(self.labels[index])
    return self.source.label(int(self.indices[index])) if hasattr(self.source, "label") else -1

  def mark(self, index: int) -> Mark:
    """What tells whether an image has changed."""
    return mark(self.source, int(self.indices[index]))

  def encoded(self, index: int) -> bytes:
    """The bytes of an image as they are stored."""
    return self.source.encoded(int(self.indices[index]))

  def __getitem__(self, index: int) -> dict:
    item = self.source[int(self.indices[index])]
    return {**item, "label": int(self.labels[index])} if self._own else item


def places_of(names: Sequence[str], source: Source, what: str) -> np.ndarray:
  """Which images of a source some names mean, int [n].

  Where several images have one name, the name means them one after the other.

  Args:
    names: as `source[i]["name"]` has them.
    source: that has them.
    what: the list, for the error.

  Raises:
    ValueError: a name that the source does not have.
  """
  wanted, found = set(names), collections.defaultdict(list)
  for i in range(len(source)):
    name = source.name(i)
    if name in wanted:
      found[name].append(i)
  missing = [name for name in names if name not in found]
  if missing:
    raise ValueError(f"{printable(what)} names {len(missing):,} images that its source does not "
                     f"have, the first of them {printable(missing[0])}: make the list again")
  taken = collections.Counter()
  places = np.empty(len(names), np.int64)
  for i, name in enumerate(names):
    places[i] = found[name][taken[name] % len(found[name])]
    taken[name] += 1
  return places
