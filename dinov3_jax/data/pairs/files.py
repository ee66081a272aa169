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

  def path(self, index: int) -> pathlib.Path:
    """Where an image is."""
    return self.root / os.fsdecode(bytes(self._names[index]))

  def __getitem__(self, index: int) -> dict:
    path = self.path(index)
    name = printable(path.relative_to(self.root))
    return {"image": self._decoder(path, name), "label": -1, "name": name}
