"""Files that survive a power cut: on disk as a whole before they take their name."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


def sync_tree(folder: pathlib.Path):
  """Makes all files below a folder, and all folders, survive a power cut."""
  for root, _, files in os.walk(folder):
    for file in files:
      sync(pathlib.Path(root, file))
    sync(pathlib.Path(root))


def sync(path: pathlib.Path):
  """Makes a file's content, or the names in a folder, survive a power cut."""
  if os.name == "nt" and path.is_dir():
    return  # folders cannot be opened there
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """A file to write that replaces the one at `path`, at once and for good, when the block ends.

  After a power cut it is the old one or the new one. What the block could not write to its end
  leaves the old one.
  """
  new = path.with_name(path.name + ".new")
  with new.open("wb") as file:
    yield file
  sync(new)
  new.replace(path)
  sync(path.parent)


def write_bytes(path: pathlib.Path, content: bytes):
  """Replaces a file as `replacing` does."""
  with replacing(path) as file:
    file.write(content)


def write_text(path: pathlib.Path, text: str):
  """As `write_bytes`."""
  write_bytes(path, text.encode())
