"""Checkpoints that survive a power cut: on disk as a whole before they take their name."""

import asyncio
import os
import pathlib

import orbax.checkpoint as ocp


class DurablePath(ocp.path.atomicity.AtomicRenameTemporaryPath):
  """The folder that Orbax writes a checkpoint into, synced before and after its renaming.

  Orbax itself syncs the arrays alone; its other files, cut to nothing by a power cut, would make a
  checkpoint unreadable that has its name already.
  """

  async def finalize(self):
    """Syncs all files and folders, gives the folder its name, and makes that last, too."""
    await asyncio.to_thread(sync_tree, pathlib.Path(self.get()))
    await super().finalize()
    await asyncio.to_thread(_sync_renamed, pathlib.Path(self.get_final()))


def _sync_renamed(folder: pathlib.Path):
  # The marker that Orbax writes right before it renames, then the name itself.
  for file in folder.iterdir():
    if file.is_file():
      sync(file)
  sync(folder)
  sync(folder.parent)


def sync_tree(folder: pathlib.Path):
  """Makes all files below a folder, and all folders, survive a power cut."""
  for root, _, files in os.walk(folder):
    for file in files:
      sync(pathlib.Path(root, file))
    sync(pathlib.Path(root))


def sync(path: pathlib.Path):
  """Makes a file's content, or the names in a folder, survive a power cut."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_text(path: pathlib.Path, text: str):
  """Replaces a file at once and for good: after a power cut it is the old one or the new one."""
  write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes):
  """As `write_text`."""
  new = path.with_name(path.name + ".new")
  new.write_bytes(content)
  sync(new)
  new.replace(path)
  sync(path.parent)
