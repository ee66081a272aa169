"""Classification of folders."""

import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import folders


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
  """Three classes of one colour each, which an untrained network tells apart."""
  folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
  for split, count in (("train", 8), ("val", 4)):
    for channel, name in enumerate(("red", "green", "blue")):
      (folder / split / name).mkdir(parents=True)
      for i in range(count):
        image = rng.integers(0, 60, (40, 40, 3), np.uint8)
        image[..., channel] += 180
        Image.fromarray(image).save(folder / split / name / f"{i}.png")
  return folder


@pytest.mark.parametrize("task", [folders.knn, folders.linear, folders.logistic])
def test_colours_are_told_apart(session_of, colours, task):
  result = task(session_of(colours, size=32, steps=50))
  assert max(result.figures.values()) > 90
  assert result.protocol["train"] == 24 and result.protocol["test"] == 12
  assert any("images of 32 pixels" in line for line in result.differs)
  assert all(picture.shape == (480, 480, 3) for picture in result.pictures.values())


def test_a_tar_of_the_same_images_gives_the_same_figures(session_of, colours, tmp_path,
                                                         monkeypatch):
  monkeypatch.setenv("DINOV3_JAX_CACHE", str(tmp_path / "cache"))
  with tarfile.open(tmp_path / "x.tar", "w") as tar:
    tar.add(colours, ".")
  ours, theirs = (folders.knn(session_of(data, size=32)) for data in (tmp_path / "x.tar", colours))
  assert ours.figures == theirs.figures and ours.protocol == theirs.protocol


def test_the_test_set_of_files_is_told(session_of, colours, tmp_path, monkeypatch):
  """Files of a test set are it, and nothing is held out of train; without them, that is said."""
  monkeypatch.setenv("DINOV3_JAX_CACHE", str(tmp_path / "cache"))
  said = "no test set of its own"
  for split, folder in (("train", "train"), ("test", "val")):
    (tmp_path / "data").mkdir(exist_ok=True)
    with tarfile.open(tmp_path / "data" / f"{split}-0000.tar", "w") as tar:
      for path in sorted((colours / folder).glob("*/*.png")):
        for copy in range(4):
          tar.add(path, f"{path.parent.name}/{path.stem}-{copy}.png")
    result = folders.knn(session_of(tmp_path / "data", size=32))
    assert any(said in line for line in result.differs) == (split == "train")
  assert result.protocol["train"] == 96 and result.protocol["test"] == 48


def test_other_files_beside_class_folders(session_of, colours, tmp_path):
  shutil.copytree(colours, tmp_path / "data")
  (tmp_path / "data" / "train.json").write_text('[{"file_name": "0.png"}]')
  ours, theirs = (folders.knn(session_of(data, size=32)) for data in (tmp_path / "data", colours))
  assert ours.figures == theirs.figures


def test_a_known_set(session_of, colours, tmp_path):
  """Pets of three colours; the figure that is usual for them has the paper's name."""
  root = tmp_path / "oxford-iiit-pet"
  (root / "annotations").mkdir(parents=True)
  (root / "images").mkdir()
  for split, name in (("train", "trainval"), ("val", "test")):
    lines = []
    for path in sorted((colours / split).glob("*/*.png")):
      own = f"{path.parent.name}_{split}{path.stem}"
      shutil.copy(path, root / "images" / f"{own}.jpg")
      lines.append(f"{own} 1 1 1")
    (root / f"annotations/{name}.txt").write_text("\n".join(lines))
  result = folders.logistic(session_of(tmp_path, size=32))
  assert result.figures["Oxford Pets, mean per class"] > 90
  assert result.paper["vit7b16"]["Oxford Pets, mean per class"] == 97.0
  assert result.protocol["usual_metric"] == "mean per class"


def test_several_labels_an_image(session_of, tmp_path):
  """Left and right half are red or not; what is marked as difficult does not count."""
  root = tmp_path / "VOCdevkit/VOC2007"
  (root / "ImageSets/Main").mkdir(parents=True)
  (root / "JPEGImages").mkdir()
  rng, lines = np.random.default_rng(0), {}
  for i in range(60):
    labels, image = rng.random(2) < 0.5, rng.integers(0, 60, (32, 32, 3), np.uint8)
    for half, name in enumerate(("left", "right")):
      image[:, 16 * half:16 * half + 16, 0] += 190 * np.uint8(labels[half])
      split = "test" if i >= 45 else "trainval"
      wrong = i == 59  # and so it does not count
      lines.setdefault(f"{name}_{split}", []).append(
          f"{i:06} {0 if wrong else 1 if labels[half] else -1}")
    Image.fromarray(image).save(root / f"JPEGImages/{i:06}.jpg", "PNG")
  for name, own in lines.items():
    (root / f"ImageSets/Main/{name}.txt").write_text("\n".join(own))
  result = folders.logistic(session_of(tmp_path, size=32))
  assert result.figures["VOC2007, 11-point mAP"] > 80
  with pytest.raises(LayoutError, match="several labels an image: the task logistic"):
    folders.knn(session_of(tmp_path, size=32))


def test_a_limit_is_told(session_of):
  result = folders.knn(session_of("folders", size=32, limit=6))
  assert result.protocol["train"] == result.protocol["test"] == 6
  assert "6 images of each split" in result.differs


def test_layouts(session_of, mini_data, tmp_path):
  with pytest.raises(LayoutError, match=r"has no train .*wanted is a folder for each class"):
    folders.knn(session_of("DAVIS", size=32))
  (tmp_path / "data").mkdir()
  shutil.copytree(mini_data / "folders", tmp_path / "data", dirs_exist_ok=True)
  (tmp_path / "data" / "val" / "stars").mkdir()
  with pytest.raises(LayoutError, match="a class stars that the training set does not have"):
    folders.knn(session_of(tmp_path / "data", size=32))
  (tmp_path / "data" / "val" / "stars").rmdir()
  shutil.rmtree(tmp_path / "data" / "val" / "discs")
  (tmp_path / "data" / "val" / "discs").mkdir()
  with pytest.raises(LayoutError, match="discs has no images"):
    folders.knn(session_of(tmp_path / "data", size=32))
