"""Images of a source, wherever images are named by paths."""

import collections
import zlib
from collections.abc import Iterable

import numpy as np


class Stored(str):
  """An image of a source, to be given in place of a path: as a string it is a name, which begins
  with that of the source, and `Decoder` reads it.

  Attributes:
    source: that has it.
    index: its number there.
  """

  _content = None

  @classmethod
  def of(cls, what: str, source, index: int) -> "Stored":
    """The image `index` of a `Source` that the user calls `what`."""
    stored = cls(f"{what}/{source.name(index)}")
    stored.source, stored.index = source, index
    return stored

  @classmethod
  def several(cls, what: str, source, indices: Iterable[int] | None = None) -> list["Stored"]:
    """Some images of a `Source` that the user calls `what`, or all of them. Where it has a name
    more than once, the image's number stands before it, as equal strings are taken for one image.
    """
    chosen = [int(i) for i in (range(len(source)) if indices is None else indices)]
    result = [cls.of(what, source, i) for i in chosen]
    counts = collections.Counter(result)
    for place, (i, stored) in enumerate(zip(chosen, result)):
      if counts[stored] > 1:
        result[place] = cls(f"{what}/{i:08}-{stored[len(what) + 1:]}")
        result[place].source, result[place].index = source, i
    return result

  def read(self) -> np.ndarray:
    """Its pixels, uint8 [H, W, 3].

    Raises:
      DamagedImage: it cannot be read.
    """
    return self.source[self.index]["image"]

  def mark(self) -> tuple[int, int]:
    """What tells whether it may have changed: bytes, and a number for the time of its file, or for
    its content where no file is known, which takes reading it; (-1, -1) if it cannot be read."""
    size, time = self.source.mark(self.index) if hasattr(self.source, "mark") else (-1, -1)
    if time not in (-1, ""):
      return size, zlib.crc32(str(time).encode())
    if self._content is None:  # once, as it may come from far away
      try:
        data = self.source.encoded(self.index)
      except Exception:  # of any source; it is named when its turn comes
        return -1, -1
      self._content = len(data), zlib.crc32(data)
    return self._content
