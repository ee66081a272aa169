"""Small sets in the layouts of ImageNet-1k and its other test sets."""

import json

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import mini_imagenet, objectnet


def test_names_and_lists(mini_data):
  root = mini_data / "ImageNet"
  names = sorted(path.name for path in (root / "train").iterdir())
  numbers = {int(next((root / "val" / name).iterdir()).stem.rsplit("_", 1)[1]): i
             for i, name in enumerate(names)}
  assert sorted(numbers) == list(range(1, 12))  # one of each class, in another order
  assert list(numbers) != sorted(numbers)
  lists = json.loads((root / "real.json").read_text())
  assert lists[9] == [] and len(lists[6]) == 2
  assert all(own == [] or own[0] == numbers[i + 1] for i, own in enumerate(lists))
  assert len(list((root / "imagenet-a").iterdir())) == 5
  assert len(list((root / "imagenet-c").iterdir())) == 19
  assert {path.name for path in (root / mini_imagenet.V2).iterdir()} == set(map(str, range(11)))


def test_objectnet_has_a_border_and_folders_that_are_no_classes(tmp_path, shapes, monkeypatch):
  monkeypatch.setattr(objectnet, "CLASSES", 4)
  monkeypatch.setattr(objectnet, "FOLDERS", {"chair": (0, 3), "mug": (1,)})
  mini_imagenet.imagenet(tmp_path, shapes, np.random.default_rng(0), 4, 1, 2, 1)
  folders = tmp_path / "objectnet-1.0/images"
  assert {path.name for path in folders.iterdir()} == {"chair", "mug", *mini_imagenet.STRANGE}
  image = np.asarray(Image.open(folders / "mug/0.png"))
  edge = np.ones(image.shape[:2], bool)
  edge[1:-1, 1:-1] = False
  assert (image[edge] == [255, 0, 0]).all() and image[1, 1].tolist() != [255, 0, 0]


def test_more_classes_than_drawings_have_other_colours(shapes):
  found = mini_imagenet._pictures(shapes, 3 * len(shapes))
  assert len(found) == 144
  pictures = [np.asarray(found[i])[..., :3][np.asarray(found[i])[..., 3] > 0].mean(0)
              for i in (0, 48, 96)]
  assert all(abs(a - b).max() > 10 for a, b in zip(pictures, [*pictures[1:], pictures[0]]))


@pytest.mark.parametrize("kind", range(3))
def test_renditions_differ_from_photographs(kind):
  image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
  assert abs(mini_imagenet.rendition(image, kind).astype(int) - image).mean() > 10


def test_sketches_have_black_edges_on_white():
  image = np.full((16, 16, 3), 200, np.uint8)
  image[4:12, 4:12] = 20
  found = mini_imagenet.sketch(image)
  assert (found[:2] == 255).all() and (found[4, 5:11] == 0).all() and (found[7:9, 7:9] == 255).all()
