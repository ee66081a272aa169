"""Classification of videos as they lie on disk."""

import shutil

import numpy as np
import pytest

from dinov3_jax.evals import clip_lists
from dinov3_jax.evals.clips import frame_times, shares, spaced
from dinov3_jax.evals.tasks import actions

SMALL = dict(frames=4, batch=4, width=12, heads=1, blocks=1, ratio=1)


def test_run(session_of, mini_clips, tmp_path):
  shutil.copytree(mini_clips / "K400", tmp_path / "data")
  session = session_of(tmp_path / "data", size=16, steps=2, batch_size=8, settings=SMALL)
  _, _, _, val = clip_lists.find(session)
  val.paths[0].write_text("no video")
  result = actions.run(session)
  assert set(result.figures) == {"K400", "K400, 6 views"}
  assert result.protocol["val"] == len(val) - 1 and result.protocol["choosing"] == 1
  assert [name for name in session.left_out] == [str(val.paths[0])]
  assert result.pictures["K400.png"].dtype == np.uint8
  assert {"2 steps, not 20 epochs", "frames = 4, not 16"} < set(result.differs)


def test_views_interleave_in_time_and_lie_side_by_side(mini_clips):
  path = next((mini_clips / "SSv2").rglob("*.webm"))
  single, *many = actions.views_of(path, 16, 4)
  assert len(many) == 6
  share = shares(frame_times(path))
  np.testing.assert_array_equal(single[1], share[spaced(6, 4)])
  times = np.sort(np.concatenate([many[0][1], many[1][1]]))
  np.testing.assert_array_equal(times, share[spaced(6, 8)])
  assert many[0][1][0] == 0 and many[1][1][-1] == 1
  (alone,) = actions.views_of(path, 16, 4, (1, 1))
  np.testing.assert_array_equal(alone[0], single[0])


def test_batches_have_every_video_once_an_epoch(session_of, mini_clips):
  session = session_of(mini_clips / "SSv2")
  _, _, train, _ = clip_lists.find(session)
  stream = actions.batches(session, train, 16, 4, 3)
  found = [next(stream) for _ in range(3)]
  labels = np.concatenate([labels for _, _, labels in found])
  assert sorted(labels) == sorted(train.labels)
  frames, times, _ = found[0]
  assert frames.shape == (3, 4, 16, 16, 3) and (np.diff(times, axis=1) > 0).all()
  later = next(actions.batches(session, train, 16, 4, 3, start=2))
  for own, there in zip(later, found[2]):
    np.testing.assert_array_equal(own, there)


def test_damaged_videos_are_replaced_and_named(session_of, mini_clips, tmp_path):
  shutil.copytree(mini_clips / "SSv2", tmp_path / "data")
  session = session_of(tmp_path / "data")
  _, _, train, _ = clip_lists.find(session)
  train.paths[0].write_text("no video")
  frames, _, _ = next(actions.batches(session, train, 16, 4, len(train)))
  assert len(frames) == len(train) and list(session.left_out) == [str(train.paths[0])]
  for path in train.paths:
    path.write_text("no video")
  with pytest.raises(actions.DamagedImage):
    for _ in actions.batches(session, train, 16, 4, len(train)):
      pass
