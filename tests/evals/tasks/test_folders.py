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
