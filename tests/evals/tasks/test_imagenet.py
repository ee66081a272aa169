"""A head on other test sets of its classes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import objectnet
from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import imagenet

CLASSES = [f"n{i:08}" for i in range(11)]  # more than ten: 10 must not stand before 2


def colour(i):
  """Far apart for the first classes."""
  return np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230]])[i % 3] // (1 + i // 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)

  def write(path, i):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.clip(colour(i) + rng.integers(0, 20, (24, 24, 3)), 0, 255)
    Image.fromarray(image.astype(np.uint8)).save(path)

  for i, name in enumerate(CLASSES):
    for j in range(4):
      write(folder / "train" / name / f"{j}.png", i)
    write(folder / "val" / name / f"ILSVRC2012_val_{i + 1:08}.JPEG.png", i)
    write(folder / imagenet.V2 / str(i) / "0.png", i)
    write(folder / "imagenet-c" / "fog" / "1" / name / "0.png", i)
  for name in CLASSES[:3]:
    write(folder / "imagenet-a" / name / "0.png", CLASSES.index(name))
  return folder


def test_sets(session_of, data):
  (data / "real.json").write_text(json.dumps([[i] for i in range(10)] + [[]]))
  result = imagenet.run(session_of(data, size=16, steps=400))
  figures = result.figures
  assert list(figures) == ["val", "ReaL", "V2", "A", "C, mCE over 15"]
  assert figures["A"] == 100  # among its three classes
  assert figures["val"] > 60
  # Equal images: were V2's folders sorted as text, most of its classes would be mistaken.
  assert abs(figures["V2"] - figures["val"]) < 20
  assert figures["C, mCE over 15"] < 100 * (1 - figures["val"] / 100 + 0.2) / 0.67474


def test_objectnet(session_of, data, monkeypatch):
  monkeypatch.setattr(objectnet, "CLASSES", 11)
  monkeypatch.setattr(objectnet, "FOLDERS", {"chair": (0, 3), "mug": (1,)})
  rng = np.random.default_rng(0)
  for folder, i in (("chair", 0), ("mug", 1), ("stapler", 2)):
    path = data / "objectnet-1.0/images" / folder / "0.png"
    path.parent.mkdir(parents=True)
    image = np.full((26, 26, 3), [255, 0, 0], np.uint8)
    image[1:-1, 1:-1] = colour(i) + rng.integers(0, 20, (24, 24, 3))
    Image.fromarray(image).save(path)
  session = session_of(data, size=16, steps=400)
  result = imagenet.run(session)
  assert result.figures["ObjectNet"] == 100
  assert any("ObjectNet by the rule of its testbed" in line for line in result.differs)
  monkeypatch.setattr(objectnet, "CLASSES", 1000)
  with pytest.raises(LayoutError, match="a head of 1000 classes, the training set has 11"):
    imagenet.run(session)
  with pytest.raises(LayoutError, match="has no folders like chair, mug"):
    imagenet.objectnet_folders(data / "train", 1000)
  shutil.rmtree(data / "objectnet-1.0")


def test_names_of_the_validation_images_say_their_number(tmp_path):
  path = tmp_path / "real.json"
  path.write_text("[[7], [], [1, 2]]")
  assert imagenet.real_labels(path, ["ILSVRC2012_val_00000003.JPEG"]) == [[1, 2]]
  for name in ("first.JPEG", "ILSVRC2012_val_00000009.JPEG"):
    with pytest.raises(LayoutError, match="does not fit the validation images"):
      imagenet.real_labels(path, [name])


def test_layouts(tmp_path):
  (tmp_path / "v2" / "n01").mkdir(parents=True)
  with pytest.raises(LayoutError, match="has a folder n01: its names are the numbers of the 10"):
    imagenet.numbered(tmp_path / "v2", 10)
  with pytest.raises(LayoutError, match="a class n01 that the training set does not have"):
    imagenet.known(tmp_path / "v2", ["n02"])
  (tmp_path / "c" / "rain" / "1").mkdir(parents=True)
  with pytest.raises(LayoutError, match="wanted are corruptions like"):
    imagenet.corruptions(tmp_path / "c", lambda folder: 1.0)


def test_both_means_of_corruptions(tmp_path):
  for name in ("fog", "spatter"):
    (tmp_path / name / "2").mkdir(parents=True)
  found = imagenet.corruptions(tmp_path, lambda folder: 1.0 if "fog" in str(folder) else 0.0)
  assert found["C, mCE over 15"] == 0 and found["C, mCE over 19"] > 50
