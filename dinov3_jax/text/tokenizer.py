"""CLIP's tokenizer: byte pairs of lower-case text, 49,408 ids.

The merges are OpenAI's (MIT license, see `CLIP_LICENSE`) and come with this package.
"""

import functools
import gzip
import html
import itertools
from collections.abc import Iterable, Sequence
from importlib import resources

import ftfy
import numpy as np
import regex

CONTEXT = 77  # ids of a caption, the first and the last included
START, END = 49406, 49407
VOCABULARY = 49408
SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
WORD_END = "</w>"
# The parts that are encoded one by one: contractions, letters, single digits, all between spaces.
PARTS = (r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}"
         r"|[^\s\p{L}\p{N}]+")


class Tokenizer:
  """Text to ids and back.

  Text is mended (`ftfy`), freed of HTML's entities and lower-cased, and runs of white space become
  one space. A caption's ids are `START`, those of its text and `END`, the greatest of all, at
  which a text tower takes its feature.
  """

  def __init__(self):
    self._split = regex.compile(PARTS, regex.IGNORECASE).findall
    self._bytes = _byte_characters()
    self._ranks, self._ids = _vocabulary()
    self._texts = {i: text for text, i in self._ids.items()}
    self._of_part = functools.lru_cache(2**16)(self._encode_part)

  def __reduce__(self):  # what it remembers stays here when it travels to workers
    return Tokenizer, ()

  def __call__(self, texts: str | Sequence[str], context: int = CONTEXT) -> np.ndarray:
    """The ids of captions as a text tower takes them.

    Args:
      texts: one caption or several.
      context: the length of a row. Of a longer caption the first ids are kept, and `END`.

    Returns:
      int32 [B, context], zeros behind `END`; B is 1 for one caption.

    Raises:
      ValueError: what is no text, or a context of less than two ids.
    """
    if context < 2:
      raise ValueError(f"a context of {context} has no room for a caption's first and last id")
    texts = [texts] if isinstance(texts, str) else list(texts)
    rows = np.zeros((len(texts), context), np.int32)
    for row, text in zip(rows, texts):
      ids = self.encode(text)
      if len(ids) > context:
        ids = [*ids[:context - 1], END]
      row[:len(ids)] = ids
    return rows

  def encode(self, text: str) -> list[int]:
    """All ids of a caption, `START` and `END` included, however many there are.

    Raises:
      ValueError: it is no text.
    """
    if not isinstance(text, str):
      raise ValueError(f"a caption must be text, not {type(text).__name__}")
    ids = itertools.chain.from_iterable(map(self._of_part, self._split(self.clean(text))))
    return [START, *ids, END]

  def clean(self, text: str) -> str:
    """Text as it is cut into parts: mended, of one line, in lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids; a space follows each part."""
    text = "".join(self._texts[int(i)] for i in ids).replace(WORD_END, " ")
    values = {character: byte for byte, character in self._bytes.items()} | {" ": ord(" ")}
    return bytes(values[character] for character in text).decode("utf-8", "replace")

  def _encode_part(self, part: str) -> tuple[int, ...]:
    if part in SPECIAL:
      return (SPECIAL[part],)
    symbols = [self._bytes[byte] for byte in part.encode()]
    symbols[-1] += WORD_END
    while len(symbols) > 1:
      pairs = list(itertools.pairwise(symbols))
      best = min(pairs, key=lambda pair: self._ranks.get(pair, len(self._ranks)))
      if best not in self._ranks:
        break
      symbols = _merged(symbols, best)
    return tuple(self._ids[symbol] for symbol in symbols)


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
  """Symbols in which every occurrence of a pair has become one."""
  result, i = [], 0
  while i < len(symbols):
    is_pair = tuple(symbols[i:i + 2]) == pair
    result.append("".join(pair) if is_pair else symbols[i])
    i += 2 if is_pair else 1
  return result


def _byte_characters() -> dict[int, str]:
  """A printable character for each byte, in the order of the vocabulary; most are Latin-1's."""
  printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
               *range(ord("®"), ord("ÿ") + 1)]
  others = [byte for byte in range(256) if byte not in printable]
  return ({byte: chr(byte) for byte in printable}
          | {byte: chr(256 + i) for i, byte in enumerate(others)})


@functools.cache
def _vocabulary() -> tuple[dict[tuple[str, str], int], dict[str, int]]:
  """The rank of every pair that is merged, and the id of every symbol."""
  file = resources.files("dinov3_jax.text") / "clip_merges.txt.gz"
  lines = gzip.decompress(file.read_bytes()).decode().splitlines()
  pairs = [tuple(line.split(" ")) for line in lines]
  single = list(_byte_characters().values())
  symbols = [*single, *(symbol + WORD_END for symbol in single), *map("".join, pairs), *SPECIAL]
  return ({pair: rank for rank, pair in enumerate(pairs)},
          {symbol: i for i, symbol in enumerate(symbols)})
