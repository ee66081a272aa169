"""A split of an index: what is said of it, and damage."""

import logging

import numpy as np
import pytest

from dinov3_jax.data.decode import DamagedImage, decode
from dinov3_jax.data.sources.encoded import EncodedSource
from dinov3_jax.data.sources.index import Entry, Found, build


def source(reader, split="all", what="the set", count=200):
  entries = [Entry(f"{i:03}.png", i // 10, i) for i in range(count)]
  index = build(["x"], [None], [Found(entries)], by_name=False)
  return EncodedSource(what, index, reader, split, decode, in_blocks=True)


def test_splits_blocks_and_what_is_said(caplog):
  caplog.set_level(logging.INFO)
  whole = source(lambda index, row: b"no image")
  parts = [source(lambda index, row: b"", split) for split in ("train", "val", "test")]
  assert len(whole) == 200 == sum(map(len, parts)) and whole.labels is None
  assert whole.blocks.tolist() == list(range(0, 201, 10))
  assert parts[0].blocks[-1] == len(parts[0]) and np.diff(parts[0].blocks).min() > 0
  said = [record.message for record in caplog.records if "the set" in record.message]
  assert len(said) == 1 and "200 images, without classes; no folders are splits (train" in said[0]


def test_damage_has_the_name_of_its_image():
  broken = source(lambda index, row: b"no image", what="broken")
  with pytest.raises(DamagedImage, match=r"007\.png cannot be read: cannot identify"):
    broken[7]
