"""A folder of images."""

import os
import pathlib

import numpy as np

from dinov3_jax.data.decode import decode
from dinov3_jax.data.sources.splits import HELD_OUT, SPLITS, hash_percent
from dinov3_jax.data.walk import SUFFIXES, images_below


class FolderSource:
  """All JPEG, PNG and WebP files below a folder, in the order of their paths.

  Where the folder has a `train` folder, its splits are the folders train, val and test; without a
  `val`, 5 % of train is held out. A plain folder is split 90 / 5 / 5 by a hash of each path, which
  neither order nor other files change. The class of an image is the folder at the top of its path;
  without any, there are no labels. Names are paths relative to the folder.
  """

  def __init__(self, root: str | os.PathLike, split: str):
    self.root = pathlib.Path(root).expanduser()
    if not self.root.is_dir():
      raise ValueError(f"no folder of images at {self.root}; give a folder, tfds:NAME or openmoji")
    found = sorted(images_below(self.root))
    if not found:
      raise ValueError(f"no image below {self.root}; JPEG, PNG and WebP files count "
                       f"({', '.join(SUFFIXES)})")
    has_splits = (self.root / "train").is_dir()
    if has_splits:
      found = [path for path in found if path.split("/")[0] in SPLITS]
    present = {path.split("/")[0] for path in found} if has_splits else set()
    paths = [path for path in found if split in ("all", _split_of(path, present))]
    if not paths:
      raise ValueError(f"no image for the split {split!r} in {self.root}" + (
        f", which has the splits {', '.join(sorted(present))}" if has_splits else
        f": of its {len(found)} images none is held out; give folders train, val and test"))
    # The classes of all splits, so that their numbers agree.
    depth = int(has_splits)
    folders = {path.split("/")[depth] for path in found if path.count("/") > depth}
    self.classes = sorted(folders) or None
    self.labels = None
    if self.classes:
      number = {name: i for i, name in enumerate(self.classes)}
      self.labels = np.array([number.get(path.split("/")[depth], -1) for path in paths])
    # Bytes in an array: millions of paths as Python strings are heavy to send to every worker.
    self._paths = np.array([os.fsencode(path) for path in paths])

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> dict:
    name = os.fsdecode(bytes(self._paths[index]))
    label = -1 if self.labels is None else int(self.labels[index])
    return {"image": decode(self.root / name, name), "label": label, "name": name}


def _split_of(path: str, present: set[str]) -> str:
  """The split that a path belongs to; `present` are the splits that have folders."""
  percent = hash_percent(path)
  if not present:
    return "val" if percent < HELD_OUT else "test" if percent < 2 * HELD_OUT else "train"
  split = path.split("/")[0]
  return "val" if split == "train" and "val" not in present and percent < HELD_OUT else split
