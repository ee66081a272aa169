"""Images by a list of their paths."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from dinov3_jax.data.decode import DamagedImage, Decoder, decode
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

  def paths(self) -> list[str]:
    """The images' paths relative to the folder, in their order."""
    return [os.fsdecode(bytes(name)) for name in self._names]

  def path(self, index: int) -> pathlib.Path:
    """Where an image is."""
    return self.root / os.fsdecode(bytes(self._names[index]))

  def name(self, index: int) -> str:
    """The name of an image, without reading it."""
    return printable(self.path(index).relative_to(self.root))

  def encoded(self, index: int) -> bytes:
    """The bytes of an image's file.

    Raises:
      DamagedImage: it cannot be read.
    """
    try:
      return self.path(index).read_bytes()
    except OSError as error:
      raise DamagedImage(self.name(index), error.strerror or error) from error

  def __getitem__(self, index: int) -> dict:
    name = self.name(index)
    return {"image": self._decoder(self.path(index), name), "label": -1, "name": name}
