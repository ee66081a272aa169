"""Checkpoints that survive a power cut: on disk as a whole before they take their name."""

import asyncio
import pathlib

import orbax.checkpoint as ocp

from dinov3_jax.data.durable import sync, sync_tree


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
