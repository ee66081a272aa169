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


def test_what_cannot_be_read_is_left_out(session_of, scenes):
  (scenes / "images/bad.png").write_bytes(b"no image")
  (scenes / "images/bad.mp4").write_bytes(b"no video")
  session = session_of(scenes / "images", size=48)
  result = pictures.pca(session)
  assert result.protocol["images"] == 3 and set(session.left_out) == {"bad.png", "bad.mp4"}
  for path in (scenes / "images").glob("[012].png"):
    path.unlink()
  with pytest.raises(ValueError, match="none of the 1 images and 1 videos can be read"):
    pictures.pca(session_of(scenes / "images", size=48))


def test_a_narrow_image_has_patches(session_of, tmp_path):
  (tmp_path / "narrow").mkdir()
  Image.fromarray(np.arange(2400, dtype=np.uint8).reshape(200, 4, 3)).save(
    tmp_path / "narrow/a.png")
  result = pictures.pca(session_of(tmp_path / "narrow", size=48))
  assert result.protocol["images"] == 1


def test_a_picture_has_the_first_images_and_components_are_of_all(session_of, scenes, monkeypatch):
  session = session_of(scenes / "images", size=48)
  whole = pictures.pca(session)
  monkeypatch.setattr(pictures, "SHOWN", 2)
  few = pictures.pca(session)
  assert few.figures == whole.figures and few.protocol["shown"] == 2
  height = len(few.pictures["shared.png"])
  np.testing.assert_array_equal(few.pictures["shared.png"][:height // 2],
                                whole.pictures["shared.png"][:height // 2])


def test_clips_of_one_name_in_two_folders(session_of, mini_clips, tmp_path):
  video = next((mini_clips / "UCF101").rglob("*.avi"))
  for folder in "ab":
    (tmp_path / "clips" / folder).mkdir(parents=True)
    shutil.copy(video, tmp_path / "clips" / folder / "c.avi")
  result = pictures.pca(session_of(tmp_path / "clips", size=32))
  assert set(result.pictures) == {"a-c.gif", "b-c.gif"} and len(result.figures) == 2


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


def test_patches_that_are_half_foreground_do_not_count(session_of, scenes):
  """Here they look like the background."""
  rng, before = np.random.default_rng(1), pictures.foreground(session_of(scenes, size=48))
  for path in (scenes / "labels").glob("*.png"):
    alpha = np.asarray(Image.open(path)).copy()
    rows, columns = (side // 8 for side in alpha.shape)
    some = np.kron(rng.random((rows, columns)) < 0.5, np.ones((8, 8), bool))
    alpha[(alpha == 0) & some & (np.arange(len(alpha)) % 8 == 0)[:, None]] = 255
    Image.fromarray(alpha).save(path)
  after = pictures.foreground(session_of(scenes, size=48))
  assert after.figures == pytest.approx(before.figures)


def test_layouts(session_of, scenes, tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(LayoutError, match="has neither images nor videos"):
    pictures.pca(session_of(tmp_path / "empty"))
  (scenes / "labels/1.png").unlink()
  with pytest.raises(LayoutError, match=r"1.png is not there: wanted is images/NAME.jpg"):
    pictures.foreground(session_of(scenes, size=48))
  with pytest.raises(LayoutError, match="has 1 images, two or more are wanted"):
    pictures.foreground(session_of(scenes, size=48, limit=1))
