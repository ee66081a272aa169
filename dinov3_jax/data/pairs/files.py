"""Images by a list of their paths."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from dinov3_jax.data.decode import Decoder, decode
from dinov3_jax.data.walk import printable


class Files:
  """A source of the images at some paths, without labels; see `data.sources.Source`."""

  labels, classes = None, None

  def __init__(self, root: str | os.PathLike, names: Sequence[str], decoder: Decoder = decode):
    """Args:
      root: a folder.
      names: paths relative to it.
      decoder: that reads them.
    """
    self.root, self._decoder = pathlib.Path(root), decoder
    self._names = np.array([os.fsencode(name) for name in names])

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> dict:
    path = os.fsdecode(bytes(self._names[index]))
    name = printable(path)
    return {"image": self._decoder(self.root / path, name), "label": -1, "name": name}
