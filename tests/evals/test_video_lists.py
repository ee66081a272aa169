"""The layouts of data sets of moving masks."""

import shutil

import numpy as np
import pytest

from dinov3_jax.evals import video_lists
from dinov3_jax.evals.session import LayoutError


def test_sets_are_told_apart(session_of):
  assert video_lists.find(session_of("DAVIS")) == ("DAVIS", ["clip0", "clip1"])
  assert video_lists.find(session_of("YouTube-VOS"))[0] == "YouTube-VOS"
  assert video_lists.find(session_of("MOSE"))[0] == "MOSE"
  with pytest.raises(LayoutError, match=r"has no ImageSets/2017/val.txt .* or YouTube-VOS"):
    video_lists.find(session_of("oxford"))


def test_a_fifth_of_the_training_videos_is_tested(session_of, tmp_path):
  (tmp_path / "train/JPEGImages").mkdir(parents=True)
  for i in range(50):
    (tmp_path / f"train/Annotations/{i:03}").mkdir(parents=True)
  name, videos = video_lists.find(session_of(tmp_path))
  assert name == "MOSE" and len(videos) == 10
  assert video_lists.find(session_of(tmp_path)) == (name, videos)


def test_masks_and_frames_of_youtube_vos(session_of, mini_data, tmp_path):
  shutil.copytree(mini_data / "YouTube-VOS", tmp_path / "data")
  session = session_of(tmp_path / "data")
  _, (video,) = video_lists.find(session)
  found = video_lists.read(session, "YouTube-VOS", video)
  assert len(found.frames) == 16 and found.masked == [0, 5, 10, 15] and len(found.masks) == 4
  # What comes before the first mask is not looked at.
  (tmp_path / "data/train/Annotations" / video / "00000.png").unlink()
  later = video_lists.read(session, "YouTube-VOS", video)
  assert later.frames == found.frames[5:] and later.masked == [0, 5, 10]
  with pytest.raises(LayoutError, match="has 3 masks for 16 frames"):
    video_lists.read(session, "MOSE", video)  # each of its frames has one
  later.frames[0].unlink()
  with pytest.raises(LayoutError, match="has 3 masks for 15 frames"):
    video_lists.read(session, "YouTube-VOS", video)


def test_objects_of_the_first_mask():
  first = np.array([[0, 3], [255, 7]], np.uint8)
  later = np.array([[5, 7], [255, 3]], np.uint8)
  masks = video_lists.of_the_first([first, later])
  np.testing.assert_array_equal(masks[0], [[0, 1], [0, 2]])
  np.testing.assert_array_equal(masks[1], [[0, 2], [255, 1]])
