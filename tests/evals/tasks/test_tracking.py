"""Tracking of videos as they lie on disk."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import propagation, video_lists, video_masks
from dinov3_jax.evals.extraction import Stopped
from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import tracking


class Oracle:
  """A session whose features are the true labels of patches, one-hot."""

  patch = 8

  def __init__(self, masks, size):
    self._masks, self._size = masks, size

  def frames(self, paths, height, width):
    rows, columns = height // 8, width // 8
    return (np.eye(4)[propagation.sample_labels(mask, rows, columns)] for mask in self._masks)


def test_true_labels_as_features_reach_the_ceiling_of_the_grid(session_of):
  """It fails if masks are sampled or resized half a patch off."""
  session = session_of("DAVIS")
  scores = {}
  for name in ("clip0", "clip1"):
    video = video_lists.read(session, "DAVIS", name)
    frames, masks = video.frames, video.masks
    oracle = Oracle(masks, 192)
    anywhere = propagation.Propagation(radius=None, neighbours=1, temperature=0.01)
    found = tracking.track(oracle, frames, masks[0], anywhere, 192)
    scores[name] = video_masks.score(found, masks)
  assert video_masks.figures(scores)["J_mean"] > 0.75


def test_run(session_of):
  result = tracking.run(session_of("DAVIS", size=64))
  assert 0 < result.figures["J&F"] <= 100 and result.protocol["videos"] == 2
  (film,) = result.pictures.values()
  assert len(film) == 5 and film[0].shape == (192, 256, 3)
  assert "frames with a short side of 64 pixels, not 960" in result.differs


def test_what_is_kept_is_not_taken_for_other_masks(session_of, mini_data, tmp_path):
  """Also if they cover as many pixels."""
  shutil.copytree(mini_data / "DAVIS", tmp_path / "DAVIS")
  session = session_of(tmp_path / "DAVIS", size=64)
  before = tracking.run(session).figures
  for path in session.data.glob("Annotations/480p/*/*.png"):
    mask = Image.open(path)
    mirrored = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.putpalette(mask.getpalette())
    mirrored.save(path)
  after = tracking.run(session)
  assert after.figures != before
  shutil.rmtree(session.cache)
  session.cache.mkdir()
  assert tracking.run(session).figures == after.figures


def test_masks_of_every_fifth_frame_are_scored(session_of, monkeypatch):
  """All frames are tracked; of four masks, the two in the middle count."""
  tracked = []
  track = tracking.track
  monkeypatch.setattr(tracking, "track", lambda *a: tracked.append(a[1]) or track(*a))
  result = tracking.run(session_of("YouTube-VOS", size=64))
  assert [len(frames) for frames in tracked] == [16] and result.protocol["data"] == "YouTube-VOS"
  (film,) = result.pictures.values()
  assert len(film) == 16
  assert result.paper["vit7b16"] == {"J&F": 80.2}
  assert any("1 videos of the training set, drawn by a seed" in line for line in result.differs)


def test_mose(session_of):
  result = tracking.run(session_of("MOSE", size=64))
  assert 0 < result.figures["J&F"] <= 100 and result.protocol["data"] == "MOSE"


def test_what_is_done_is_not_done_again(session_of, monkeypatch):
  videos = iter([False, True])
  with pytest.raises(Stopped):  # between the two videos
    tracking.run(session_of("DAVIS", size=64, stop=lambda: next(videos)))
  first = tracking.run(session_of("DAVIS", size=64))
  tracked = []
  track = tracking.track
  monkeypatch.setattr(tracking, "track", lambda *a: tracked.append(a) or track(*a))
  again = tracking.run(session_of("DAVIS", size=64))
  assert again.figures == first.figures and len(tracked) == 1  # the first one, for its picture


def test_layouts(session_of, mini_data, tmp_path):
  with pytest.raises(LayoutError, match=r"has no ImageSets/2017/val.txt"):
    tracking.run(session_of("oxford"))
  shutil.copytree(mini_data / "DAVIS", tmp_path / "data")
  mask = tmp_path / "data/Annotations/480p/clip0/00001.png"
  Image.open(mask).convert("RGB").save(mask)
  with pytest.raises(ValueError, match=r"00001.png has the mode RGB"):
    tracking.run(session_of(tmp_path / "data", size=64))
  mask.unlink()
  with pytest.raises(LayoutError, match="4 masks for 5 frames"):
    tracking.run(session_of(tmp_path / "data", size=64))
