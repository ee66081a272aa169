"""Captions of many images, kept compactly, and what is wrong with some of them."""

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import regex

NO_TEXT, EMPTY = "captions that are no text", "empty captions"
NO_CAPTION, NO_IMAGE = "images without a caption", "captions without an image"
KEYS = ("caption", "captions", "text", "texts", "sentences")  # under which captions are found
LOOKED_AT = 10_000  # captions whose ids are counted
_FOREIGN = regex.compile(r"(?!\p{Latin})\p{L}")


class Captions:
  """A list of strings for each image, in two arrays and one string of bytes.

  Millions of Python strings would be heavy to send to every worker.
  """

  def __init__(self, of_images: Iterable[Sequence[str]]):
    of_images = [list(captions) for captions in of_images]
    encoded = [text.encode("utf-8", "surrogatepass") for texts in of_images for text in texts]
    self._bytes = b"".join(encoded)
    self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    self._first = np.cumsum([0, *map(len, of_images)], dtype=np.int64)

  def __len__(self) -> int:
    return len(self._first) - 1

  def __getitem__(self, index: int) -> list[str]:
    """The captions of an image."""
    return [self._text(i) for i in range(*self._first[index:index + 2])]

  @property
  def count(self) -> int:
    """Of all images together."""
    return len(self._ends) - 1

  def sample(self, count: int) -> list[str]:
    """At most so many captions, evenly spread."""
    return [self._text(i * self.count // min(count, self.count))
            for i in range(min(count, self.count))]

  def _text(self, i: int) -> str:
    return self._bytes[self._ends[i]:self._ends[i + 1]].decode("utf-8", "surrogatepass")


def lines_of(data: bytes) -> list[Any]:
  """The captions in the content of a text file, one a line; bytes that are no UTF-8 are no text."""
  try:
    lines = data.decode("utf-8-sig").splitlines()
  except UnicodeDecodeError:
    return [data]
  return lines or [""]


def of_object(content: Any) -> list[Any]:
  """The captions in what JSON or a table holds: a list, or what stands under the first of `KEYS`.

  Raises:
    KeyError: it has none of these keys.
    TypeError: it is neither a list nor has it keys.
  """
  if not isinstance(content, list):
    content = content[next((key for key in KEYS if key in content), KEYS[0])]
  return content if isinstance(content, list) else [content]


def usable(captions: Iterable[Any], faults: collections.Counter) -> list[str]:
  """Those captions that say something, on one line each; counts the others in `faults`."""
  kept = []
  for caption in captions:
    if not isinstance(caption, str):
      faults[NO_TEXT] += 1
    elif not (text := " ".join(caption.split())):
      faults[EMPTY] += 1
    else:
      kept.append(text)
  return kept


def notes(captions: Captions, encode: Callable[[str], Sequence[int]], context: int) -> list[str]:
  """What a text tower will make of captions, where that may surprise.

  Args:
    captions: of which at most `LOOKED_AT` are looked at.
    encode: to ids, see `Tokenizer.encode`.
    context: ids that the tower takes.

  Returns:
    A sentence each on captions that are cut off and on those in other scripts, without full stop.
  """
  texts = captions.sample(LOOKED_AT)
  long = sum(len(encode(text)) > context for text in texts)
  foreign = sum(_FOREIGN.search(text) is not None for text in texts)
  of = f"of {len(texts):,} captions" + (" looked at" if len(texts) < captions.count else "")
  found = []
  if long:
    found.append(f"{long:,} {of} have more than {context} ids and are cut off there")
  if foreign:
    found.append(f"{foreign:,} {of} have letters other than Latin ones, which CLIP's vocabulary "
                 "spells in bytes")
  return found


def drawn(captions: Sequence[str], rng: np.random.Generator) -> str:
  """One of an image's captions."""
  return captions[int(rng.integers(len(captions)))]
