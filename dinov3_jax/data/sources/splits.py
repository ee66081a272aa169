"""How images are divided into train, val and test where a source does not say."""

import hashlib

SPLITS = ("train", "val", "test")
HELD_OUT = 5  # percent of the images each, where a source has no val or test split of its own


def hash_percent(key: str) -> int:
  """A stable, uniform number in 0..99 for a name, to split data by."""
  digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
  return int.from_bytes(digest[:8], "big") % 100
