"""Where weights lie, and who wrote them."""

import os

from etils import epath

FOLDER = "checkpoints"  # of a run of our own trainer
BEST = "best"  # a small file in it, which names one of the checkpoints


def expand(path: str | os.PathLike) -> epath.Path:
  """The path, with the home directory in place of a leading `~`."""
  return epath.Path(os.path.expanduser(os.fspath(path)))


def is_native(path: epath.Path) -> bool:
  """Whether our own trainer wrote what is there."""
  return is_best(path) or any((path / item).is_dir() for item in ("state", FOLDER))


def is_best(path: epath.Path) -> bool:
  """Whether it is the file that names the best of a run's checkpoints."""
  return path.name == BEST and path.parent.name == FOLDER and path.is_file()
