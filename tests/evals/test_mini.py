"""Small data sets: equal seeds, layouts, true labels."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import mini


def test_equal_seeds_give_equal_files(tmp_path, shapes):
  for name in ("a", "b"):
    mini.amstertime(tmp_path / name, shapes, np.random.default_rng(3), pairs=2)
  files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
  assert [str(file) for file in files] == ["new/0000.png", "new/0001.png", "old/0000.jpg",
                                           "old/0001.jpg"]
  for file in files:
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_classes_lie_on_both_sides(mini_data, shapes):
  for split, count in (("train", 8), ("val", 4)):
    for name in shapes.classes:
      assert len(list((mini_data / "folders" / split / name).iterdir())) == count


def test_masks_are_palette_files(mini_data):
  with Image.open(mini_data / "DAVIS/Annotations/480p/clip0/00000.png") as mask:
    assert mask.mode == "P" and set(np.unique(mask)) <= {0, 1, 2, 3}


def test_keypoints_follow_their_drawing(tmp_path):
  """The drawing has a dot of its own colour at every keypoint's place."""
  class Dots:
    classes, labels = ("dots",), np.zeros(1, int)

    def __getitem__(self, index):
      picture = np.zeros((64, 64, 4), np.uint8)
      picture[16:48, 16:48] = (0, 255, 0, 255)
      picture[20:30, 20:44] = (255, 0, 0, 255)
      return Image.fromarray(picture, "RGBA")

  mini.spair(tmp_path, Dots(), np.random.default_rng(0), classes=1, images=3)
  colours = {}
  for file in sorted((tmp_path / "PairAnnotation/test").iterdir()):
    pair = json.loads(file.read_text())
    for key in ("src", "trg"):
      image = np.asarray(Image.open(tmp_path / "JPEGImages/dots" / pair[f"{key}_imname"]), int)
      colours.setdefault(pair[f"{key}_imname"], [
        image[y, x, 0] > image[y, x, 1] for x, y in pair[f"{key}_kps"]])
  views = np.array(list(colours.values()))
  assert len(views) == 3 and (views == views[0]).mean() > 0.8  # those on an edge may differ


def test_command(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["mini", "--out", str(tmp_path)])
  (tmp_path / "something").touch()
  assert mini.main() == 1 and "is there already" in capsys.readouterr().err


def test_openmoji_is_the_default():
  drawings = mini.Drawings(side=32)
  assert drawings[0].size == (32, 32) and drawings[0].mode == "RGBA"
  assert len(drawings) == len(drawings.labels) and "animals" in drawings.classes
  with pytest.raises(IndexError):
    drawings[len(drawings)]
