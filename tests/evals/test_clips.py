"""Frames of videos by their times; squares."""

import numpy as np
import pytest

from dinov3_jax.data.decode import DamagedImage
from dinov3_jax.evals import clips
from dinov3_jax.evals.mini_videos import write_video

TIMES = np.cumsum([0, 0.1, 0.04, 0.3, 0.05, 0.2, 0.1, 0.03])


@pytest.fixture(scope="module")
def video(tmp_path_factory):
  """Frame i is 25 i bright, at uneven times, with its upper left quarter white."""
  pytest.importorskip("av", reason="videos need `pip install av`")
  path = tmp_path_factory.mktemp("video") / "a.mp4"
  frames = [np.full((48, 64, 3), 25 * i, np.uint8) for i in range(len(TIMES))]
  for frame in frames:
    frame[:24, :32] = 255
  write_video(path, frames, TIMES)
  return path


def brightness(frame):
  return round(float(frame[30:, 40:].mean()) / 25)


def test_times_are_those_of_the_file(video):
  np.testing.assert_allclose(clips.frame_times(video), TIMES, atol=2e-3)


def test_frames_by_their_times(video):
  times = clips.frame_times(video)
  assert [brightness(x) for x in clips.read_frames(video, times)] == list(range(8))
  assert [brightness(x) for x in clips.read_frames(video, times[[0, 3, 3, 7]])] == [0, 3, 3, 7]
  # Between two frames the first one is shown; after the last one, the last one.
  assert [brightness(x) for x in clips.read_frames(video, [0.12, 0.43, 9.0])] == [1, 2, 7]
  assert clips.read_frames(video, [0])[0].shape == (48, 64, 3)


def test_videos_that_are_shown_turned(video, tmp_path):
  """The matrix of a telephone that was held upright: a quarter turn to the right."""
  data, number = video.read_bytes(), lambda x: int(x * 65536).to_bytes(4, "big", signed=True)
  matrix = lambda a, b, c, d: b"".join(map(number, (a, b, 0, c, d, 0, 0, 0))) + b"\x40\0\0\0"
  place = data.index(b"tkhd")
  turned = data[place:].replace(matrix(1, 0, 0, 1), matrix(0, 1, -1, 0), 1)
  (tmp_path / "turned.mp4").write_bytes(data[:place] + turned)
  (frame,) = clips.read_frames(tmp_path / "turned.mp4", [0])
  assert frame.shape == (64, 48, 3) and frame[4:28, 28:44].min() > 200 > frame[4:28, 4:20].max()


def test_damaged_files(video, tmp_path):
  (tmp_path / "no.mp4").write_text("no video")
  with pytest.raises(DamagedImage, match=r"no.mp4 cannot be read"):
    clips.frame_times(tmp_path / "no.mp4")
  with pytest.raises(DamagedImage, match=r"none.mp4 cannot be read: .*No such file"):
    clips.read_frames(tmp_path / "none.mp4", [0])
  write_video(tmp_path / "cut.avi", clips.read_frames(video, TIMES), TIMES)
  data = (tmp_path / "cut.avi").read_bytes()
  (tmp_path / "cut.avi").write_bytes(data[:len(data) * 2 // 3])
  assert len(clips.read_frames(tmp_path / "cut.avi", TIMES)) == 8  # the last one again


def test_places_of_frames():
  assert clips.spaced(31, 16).tolist() == list(range(0, 31, 2))
  assert clips.spaced(1, 4).tolist() == [0, 0, 0, 0]
  rng = np.random.default_rng(0)
  drawn = clips.drawn(20, 16, rng)
  assert (np.diff(drawn) > 0).all() and drawn[-1] < 20
  assert len(clips.drawn(3, 16, rng)) == 16
  assert clips.shares(np.array([0, 0.5, 2])).tolist() == [0, 0.25, 1]
  assert clips.shares(np.zeros(1)).tolist() == [0]


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_squares_lie_along_the_longer_side(shape):
  ramp = np.broadcast_to(np.arange(24)[:, None] if shape[0] == 24 else np.arange(24), shape)
  frame = np.repeat(ramp[..., None], 3, 2).astype(np.uint8)
  (middle,) = clips.squares(frame, 8)
  assert middle.min() == 8 and middle.max() == 15
  assert [x.min() for x in clips.squares(frame, 8, 3)] == [0, 8, 16]


def test_a_window_is_that_of_all_frames():
  frames = [np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)] * 2
  first, second = clips.random_square(frames, 16, np.random.default_rng(1))
  np.testing.assert_array_equal(first, second)
  assert first.shape == (16, 16, 3)
