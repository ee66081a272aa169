"""How the folders at the top of a folder of images are read: as splits, or as classes."""

import dataclasses
from collections.abc import Iterable

from dinov3_jax.data.sources.splits import HELD_OUT, hash_percent

SPELLINGS = {"train": ("train", "training"), "val": ("val", "validation", "valid", "dev"),
             "test": ("test", "testing")}
SPLIT_OF_NAME = {name: split for split, names in SPELLINGS.items() for name in names}


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the folders at the top are.

  Attributes:
    splits: the split, train, val or test, of each folder that is one; empty where all are classes.
    left_out: the other folders, where some are splits.
  """

  splits: dict[str, str]
  left_out: tuple[str, ...] = ()

  @property
  def depth(self) -> int:
    """The number of folders above those of the classes."""
    return int(bool(self.splits))

  @property
  def present(self) -> set[str]:
    """The splits that have folders."""
    return set(self.splits.values())

  def split(self, path: str) -> str | None:
    """The split of an image, by its path relative to the top; None where it has none.

    Without folders for splits, a hash of the path holds out 5 % each for val and test; without one
    for val, 5 % of train.
    """
    percent = hash_percent(path)
    if not self.splits:
      return "val" if percent < HELD_OUT else "test" if percent < 2 * HELD_OUT else "train"
    folder, _, rest = path.partition("/")
    split = self.splits.get(folder) if rest else None
    return "val" if split == "train" and "val" not in self.present and percent < HELD_OUT else split


def read_layout(paths: Iterable[str]) -> Layout:
  """Reads the layout from the paths of all images, relative to the top.

  Names count in any case: train or training; val, validation, valid or dev; test or testing. They
  are splits where a folder for train stands
    - beside one for val or test, or
    - beside no folder of another name, or
    - beside others that have no folders with images in them, while its own images all lie in such.
  Elsewhere a folder called train is a class like any other.
  """
  nested, flat = set(), set()  # folders that have images in folders, and images of their own
  for path in paths:
    parts = path.split("/", 2)
    if len(parts) > 1:
      (nested if len(parts) > 2 else flat).add(parts[0])
  folders = nested | flat
  splits = {name: SPLIT_OF_NAME[name.lower()] for name in folders if name.lower() in SPLIT_OF_NAME}
  others = folders - splits.keys()
  train = {name for name, split in splits.items() if split == "train"}
  held_out = splits.keys() - train
  by_class = not train & flat and not others & nested
  if train and (held_out or not others or by_class):
    return Layout(dict(sorted(splits.items())), tuple(sorted(others)))
  return Layout({})
