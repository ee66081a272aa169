"""What a mixture is made of, and the file that says so.

```
mix.json        {"format": 1, "sources": [{"name", "source", "split", "list", "images",
                                            "homogeneous", "probability"}, ...]}
NAME.txt        the images of a part: names in its source, one a line, in the order of the source
```

The paper (section 3.1) has each batch either homogeneous, from ImageNet-1k alone (one in ten), or
mixed from everything else. So the probability of a homogeneous part is that of a whole batch; that
of another part is an image's in the other batches, and these sum up to 1.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

FILE = "mix.json"


@dataclasses.dataclass(frozen=True)
class Part:
  """Of a mixture.

  Attributes:
    name: unique in a mixture, and a file's name.
    source, split: what `open_source` takes.
    names: of the images; None takes all of the source.
    weight: the probability of a batch where homogeneous; else relative to the other parts', None:
      the number of images.
    homogeneous: whole batches are from this part.
    images: how many there are where `names` is None.
  """

  name: str
  source: str
  split: str = "all"
  names: Sequence[str] | None = None
  weight: float | None = None
  homogeneous: bool = False
  images: int = 0

  @property
  def count(self) -> int:
    return self.images if self.names is None else len(self.names)


def probabilities(parts: Sequence[Part]) -> list[float]:
  """The probability of each part, see above.

  Raises:
    ValueError: no parts, two of one name, an empty one, weights that make no sense.
  """
  names = [part.name for part in parts]
  if not parts or len(set(names)) < len(names):
    raise ValueError("a mixture needs parts with different names, not "
                     f"{', '.join(names) or 'none'}")
  for part in parts:
    if not part.count:
      raise ValueError(f"{part.name} has no images")
    if part.homogeneous and (part.weight is None or not 0 < part.weight <= 1):
      raise ValueError(f"{part.name} is homogeneous: give it the probability of a batch, above 0 "
                       f"and at most 1, not {part.weight}")
    if part.weight is not None and not (np.isfinite(part.weight) and part.weight > 0):
      raise ValueError(f"the weight of {part.name} must be positive, not {part.weight}")
  alone = sum(part.weight for part in parts if part.homogeneous)
  mixed = [part.count if part.weight is None else part.weight
           for part in parts if not part.homogeneous]
  given = {part.weight is None for part in parts if not part.homogeneous}
  if len(given) == 2:
    raise ValueError("give all parts that are mixed a weight, or none of them")
  if alone > 1 + 1e-9 or (mixed and alone > 1 - 1e-9) or (not mixed and alone < 1 - 1e-9):
    raise ValueError(f"homogeneous batches have a probability of {alone:g} together, which leaves "
                     + ("none for the other parts" if mixed else "batches that come from nowhere"))
  return [part.weight if part.homogeneous else
          (part.count if part.weight is None else part.weight) / sum(mixed) for part in parts]


def read(folder: pathlib.Path) -> list[Part]:
  """The parts that `write` wrote; weights are probabilities.

  Raises:
    ValueError: the file is not there, is no mixture, or a list is cut.
  """
  try:
    mixture = json.loads((folder / FILE).read_text())
    sources = mixture["sources"]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{folder / FILE} is no mixture ({type(error).__name__})") from error
  parts = []
  for entry in sources:
    names = None
    if entry["list"]:
      text = (folder / entry["list"]).read_bytes().decode(errors="surrogateescape")
      names = text.split("\n")[:-1]
      if len(names) != entry["images"]:
        raise ValueError(f"{folder / entry['list']} has {len(names)} images, not the "
                         f"{entry['images']} of {FILE}: run `curate mix` again")
    parts.append(Part(entry["name"], entry["source"], entry["split"], names, entry["probability"],
                      entry["homogeneous"], entry["images"]))
  return parts
