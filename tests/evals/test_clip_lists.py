"""The layouts of data sets of actions."""

import json
import shutil

import pytest

from dinov3_jax.evals import clip_lists
from dinov3_jax.evals.mini_videos import MOTIONS
from dinov3_jax.evals.session import LayoutError


def test_ucf(session_of, mini_clips):
  name, classes, train, val = clip_lists.find(session_of(mini_clips / "UCF101"))
  assert name == "UCF101" and len(classes) == 8 and (len(train), len(val)) == (9, 3)
  for split in (train, val):  # numbers in the list begin at 1
    assert [path.parent.name for path in split.paths] == [classes[i] for i in split.labels]


def test_something_something(session_of, mini_clips):
  name, classes, train, _ = clip_lists.find(session_of(mini_clips / "SSv2"))
  assert name == "SSv2" and classes[0] == "Bringing something closer"  # without brackets
  templates = [name.replace("[", "").replace("]", "") for name in MOTIONS]
  assert [classes[i] for i in train.labels[:8]] == templates
  assert train.of([2, 0]).paths == [train.paths[2], train.paths[0]]


def test_kinetics(session_of, mini_clips):
  name, classes, train, val = clip_lists.find(session_of(mini_clips / "K400"))
  assert name == "K400" and (len(train), len(val)) == (9, 3)
  assert [path.parent.name for path in train.paths] == [classes[i] for i in train.labels]


def test_lists_of_paths(session_of, tmp_path):
  for file in ("a.mp4", "b c.mp4"):
    (tmp_path / file).touch()
  (tmp_path / "train.csv").write_text('a.mp4 3\n"b c.mp4" 0\n')
  (tmp_path / "val.csv").write_text(f"{tmp_path}/a.mp4 1\n")
  name, classes, train, val = clip_lists.find(session_of(tmp_path))
  assert name == "videos" and len(classes) == 4 and train.labels.tolist() == [3, 0]
  assert val.paths == [tmp_path / "a.mp4"]
  (tmp_path / "val.csv").write_text("a.mp4,1\n")
  with pytest.raises(LayoutError, match=r"val.csv has a line 'a.mp4,1'"):
    clip_lists.find(session_of(tmp_path))


def test_lists_that_do_not_fit(session_of, mini_clips, tmp_path):
  with pytest.raises(LayoutError, match=r"has no train .*wanted is UCF-101"):
    clip_lists.find(session_of("DAVIS"))
  shutil.copytree(mini_clips / "SSv2", tmp_path / "ssv2")
  items = json.loads((tmp_path / "ssv2/train.json").read_text())
  (tmp_path / "ssv2/train.json").write_text(json.dumps([items[0] | dict(template="Doing [it]")]))
  with pytest.raises(LayoutError, match=r"train.json has the template 'Doing it'"):
    clip_lists.find(session_of(tmp_path / "ssv2"))
  (tmp_path / "ssv2/train.json").write_text("[]")
  with pytest.raises(LayoutError, match="has no videos of the training set"):
    clip_lists.find(session_of(tmp_path / "ssv2"))
  shutil.copytree(mini_clips / "UCF101", tmp_path / "ucf")
  (tmp_path / "ucf/ucfTrainTestlist/classInd.txt").write_text("1 Archery\n")
  with pytest.raises(LayoutError, match=r"whose class is not in classInd.txt"):
    clip_lists.find(session_of(tmp_path / "ucf"))
