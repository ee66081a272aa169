"""Small data sets of videos."""

import json

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import clips, mini_videos


def test_youtube_vos_has_a_mask_for_every_fifth_frame(mini_data):
  root = mini_data / "YouTube-VOS/train"
  for name, video in json.loads((root / "meta.json").read_text())["videos"].items():
    masks = sorted(p.stem for p in (root / "Annotations" / name).iterdir())
    assert masks == ["00000", "00005", "00010", "00015"]
    assert len(list((root / "JPEGImages" / name).iterdir())) == 16
    assert video["objects"]["3"]["frames"] == masks[1:]
    assert 3 not in np.unique(Image.open(root / "Annotations" / name / "00000.png"))


def test_mose_has_a_tall_video(mini_data):
  sizes = [Image.open(path).size for path in sorted(
      (mini_data / "MOSE/train/Annotations").glob("*/00000.png"))]
  assert sizes == [(192, 256), (256, 192)]


def test_opposite_motions_have_the_same_frames_in_the_opposite_order(shapes):
  for first, second in zip(list(mini_videos.MOTIONS)[::2], list(mini_videos.MOTIONS)[1::2]):
    a, b = (np.stack(mini_videos.action(shapes[0], mini_videos.MOTIONS[name],
                                        np.random.default_rng(0), 5)).astype(int)
            for name in (first, second))
    assert abs(a[0] - a[-1]).mean() > 5  # something happens
    assert abs(a - b[::-1]).mean() < 5  # the noise
    assert abs(a[2] - b[2]).mean() < 5


def test_videos_keep_their_times(tmp_path, shapes):
  pytest.importorskip("av", reason="videos need `pip install av`")
  times = [0, 0.05, 0.3, 0.32]
  frames = mini_videos.action(shapes[0], (1, 0, 0, 0), np.random.default_rng(0), 4)
  mini_videos.write_video(tmp_path / "a.webm", frames, times, "libvpx")
  np.testing.assert_allclose(clips.frame_times(tmp_path / "a.webm"), times, atol=2e-3)


def test_a_clip_and_some_of_its_frames(mini_clips):
  files = sorted(path.name for path in (mini_clips / "clip").iterdir())
  assert files == ["clip.mp4", "frame_00.jpg", "frame_02.jpg", "frame_05.jpg"]
  assert len(clips.frame_times(mini_clips / "clip/clip.mp4")) == 6
