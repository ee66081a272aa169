"""What every source is."""

from typing import Protocol

import numpy as np


class Source(Protocol):
  """A data set of images; it pickles cheaply, for it travels to worker processes.

  `source[i]` is `{"image": uint8 [H, W, 3] RGB, "label": int, "name": str}`, with a label of -1
  where there is none. `classes` is a list of names, or None where there are no labels; `labels` an
  int array, or None where no image of the split has one, and also where only reading every image
  would tell (TFDS). `name(i)` is the name alone, without decoding, and `encoded(i)` the image as it
  is stored, or as a PNG.

  A source whose images lie in files has `mark(i)`, which tells whether an image has changed; see
  `marks.mark`.

  A source whose images are read in blocks has `blocks`, the starts of these, ending with the number
  of images.
  """

  labels: np.ndarray | None
  classes: list[str] | None

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict: ...

  def name(self, index: int) -> str: ...

  def encoded(self, index: int) -> bytes: ...
