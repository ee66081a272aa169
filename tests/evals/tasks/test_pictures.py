"""Pictures of components and of the foreground."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import pictures


@pytest.fixture
def scenes(tmp_path):
  """Red boxes on blue, with their masks, in images of two sizes."""
  rng = np.random.default_rng(0)
  for name in ("images", "labels"):
    (tmp_path / "data" / name).mkdir(parents=True)
  for i in range(3):
    image = rng.integers(0, 40, (48, 64 if i else 48, 3), np.uint8)
    image[..., 2] += 150
    alpha = np.zeros(image.shape[:2], np.uint8)
    top, left = rng.integers(0, 2, 2) * 8
    alpha[top:top + 40, left:left + 40] = 255
    image[alpha > 0] = [220, 20, 20]
    Image.fromarray(image).save(tmp_path / f"data/images/{i}.png")
    Image.fromarray(alpha).save(tmp_path / f"data/labels/{i}.png")
  return tmp_path / "data"


def test_components_that_images_share(session_of, scenes):
  """Equal patches have equal colours in all images of the shared picture."""
  result = pictures.pca(session_of(scenes / "images", size=48))
  assert set(result.pictures) == {"alone.png", "shared.png"}
  assert all(0 < share <= 100.01 for share in result.figures.values())
  later = pictures.pca(session_of(scenes / "images", size=48, settings=dict(skip=4)))
  assert later.figures["variance of the components, all images"] < result.figures[
    "variance of the components, all images"]
  assert "skip = 4, not 0" in later.differs


def test_clips(session_of, mini_clips, tmp_path):
  video = next((mini_clips / "UCF101").rglob("*.avi"))
  (tmp_path / "clip").mkdir()
  shutil.copy(video, tmp_path / "clip")
  result = pictures.pca(session_of(tmp_path / "clip", size=32))
  (film,) = result.pictures.values()
  assert len(film) == pictures.CLIP and film[0].shape == (32, 64, 3)


def test_foreground(session_of, scenes):
  result = pictures.foreground(session_of(scenes, size=48))
  assert result.figures["average precision"] > 90 and result.figures["IoU"] > 60
  assert result.pictures["foreground.png"].dtype == np.uint8


def test_layouts(session_of, scenes, tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(LayoutError, match="has neither images nor videos"):
    pictures.pca(session_of(tmp_path / "empty"))
  (scenes / "labels/1.png").unlink()
  with pytest.raises(LayoutError, match=r"1.png is not there: wanted is images/NAME.jpg"):
    pictures.foreground(session_of(scenes, size=48))
  with pytest.raises(LayoutError, match="has 1 images, two or more are wanted"):
    pictures.foreground(session_of(scenes, size=48, limit=1))
