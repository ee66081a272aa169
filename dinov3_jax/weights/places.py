"""Where weights lie, and who wrote them."""

import os

from etils import epath


def expand(path: str | os.PathLike) -> epath.Path:
  """The path, with the home directory in place of a leading `~`."""
  return epath.Path(os.path.expanduser(os.fspath(path)))


def is_native(path: epath.Path) -> bool:
  """Whether our own trainer wrote what is there."""
  return any((path / item).is_dir() for item in ("state", "checkpoints"))
