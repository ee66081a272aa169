"""Which folders are splits, and which are classes."""

import pytest

from dinov3_jax.data.sources.layout import read_layout


def paths(*folders):
  """Two images in each folder."""
  return [f"{folder}/{i}.png" if folder else f"{i}.png" for folder in folders for i in range(2)]


@pytest.mark.parametrize("folders", [
  ["bus", "car", "train", "tram"], ["bus/day", "car/day", "train/day", "tram/night"],
  ["bus", "train/a", "train"], ["cat", "dog"], ["test"], ["val/a", "test/a"], ["", "cat"], [""],
  ["deep/train", "deep/val"], ["trains", "vals"]])
def test_classes(folders):
  layout = read_layout(paths(*folders))
  assert not layout.splits and layout.depth == 0 and not layout.left_out
  images = [f"x/{i}.png" for i in range(2000)]
  splits = [layout.split(image) for image in images]
  assert {"train", "val", "test"} == set(splits) and 1700 < splits.count("train") < 1900


@pytest.mark.parametrize("folders, splits, left_out", [
  (["train/a", "val/a", "test"], dict(train="train", val="val", test="test"), ()),
  (["train", "valid"], dict(train="train", valid="val"), ()),
  (["Train/a", "Test/a"], dict(Train="train", Test="test"), ()),
  (["TRAINING", "VALIDATION", "TESTING"],
   dict(TRAINING="train", VALIDATION="val", TESTING="test"), ()),
  (["train", "dev", "extra"], dict(train="train", dev="val"), ("extra",)),
  (["train/a", "train/b"], dict(train="train"), ()), (["train"], dict(train="train"), ()),
  (["train/a", "train/b", "extra", "more"], dict(train="train"), ("extra", "more")),
  (["train", ""], dict(train="train"), ()),
  (["train", "val", "validation"], dict(train="train", val="val", validation="val"), ())])
def test_splits(folders, splits, left_out):
  layout = read_layout(paths(*folders))
  assert layout.splits == splits and layout.left_out == left_out and layout.depth == 1
  for folder, split in splits.items():
    found = {layout.split(f"{folder}/a/{i}.png") for i in range(300)}
    held_out = split == "train" and "val" not in splits.values()
    assert found == ({"train", "val"} if held_out else {split})
  assert layout.split("0.png") is None and layout.split("train.png") is None
  assert all(layout.split(f"{folder}/0.png") is None for folder in left_out)
