"""Small data sets of single images: layouts and true labels."""

import json

import numpy as np
from PIL import Image

from dinov3_jax.evals import mini_images


def test_classes_lie_on_both_sides(mini_data, shapes):
  for split, count in (("train", 8), ("val", 4)):
    for name in shapes.classes:
      assert len(list((mini_data / "folders" / split / name).iterdir())) == count


def test_keypoints_follow_their_drawing(tmp_path):
  """The drawing has a dot of its own colour at every keypoint's place."""
  class Dots:
    classes, labels = ("dots",), np.zeros(1, int)

    def __getitem__(self, index):
      picture = np.zeros((64, 64, 4), np.uint8)
      picture[16:48, 16:48] = (0, 255, 0, 255)
      picture[20:30, 20:44] = (255, 0, 0, 255)
      return Image.fromarray(picture, "RGBA")

  mini_images.spair(tmp_path, Dots(), np.random.default_rng(0), classes=1, images=3)
  colours = {}
  for file in sorted((tmp_path / "PairAnnotation/test").iterdir()):
    pair = json.loads(file.read_text())
    for key in ("src", "trg"):
      image = np.asarray(Image.open(tmp_path / "JPEGImages/dots" / pair[f"{key}_imname"]), int)
      colours.setdefault(pair[f"{key}_imname"], [
        image[y, x, 0] > image[y, x, 1] for x, y in pair[f"{key}_kps"]])
  views = np.array(list(colours.values()))
  assert len(views) == 3 and (views == views[0]).mean() > 0.8  # those on an edge may differ


def test_a_third_of_the_visitors_show_no_work(mini_data):
  root = mini_data / "Met"
  works, asked = (json.loads((root / f"ground_truth/{name}.json").read_text())
                  for name in ("MET_database", "testset"))
  assert {entry["id"] for entry in works} == set(range(8))
  assert len(asked) == 12 and sum("MET_id" not in entry for entry in asked) == 4
  assert all((root / "images" / entry["path"]).exists() for entry in works + asked)


def test_the_alpha_is_where_the_drawing_is(mini_data):
  for label in sorted((mini_data / "foreground/labels").iterdir()):
    with Image.open(label) as image:
      assert image.mode == "RGBA"
      shown = np.asarray(image)
    photograph = np.asarray(Image.open(mini_data / "foreground/images" / f"{label.stem}.jpg"), int)
    assert abs(shown[..., :3] - photograph).mean() < 8  # JPEG
    assert 0.02 < (shown[..., 3] > 127).mean() < 0.6
