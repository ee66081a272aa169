"""Retrieval on data sets as they lie on disk."""

import os
import pickle
import shutil

import numpy as np
import pytest

from dinov3_jax.evals import retrieval
from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import instances


def test_oxford(session_of):
  result = instances.oxford(session_of("oxford", size=32))
  assert list(result.figures) == [f"roxford5k {name}" for name in retrieval.PROTOCOLS]
  assert all(0 < value <= 100 for value in result.figures.values())
  assert result.protocol["roxford5k queries"] == 4
  assert result.pictures["roxford5k.png"].ndim == 3


def test_a_query_that_is_in_the_database_is_found(session_of, mini_data, tmp_path):
  """Each query's positive is its own image."""
  (tmp_path / "data").mkdir()
  shutil.copytree(mini_data / "oxford" / "jpg", tmp_path / "data" / "jpg")
  names = [f"query_{i:03}" for i in range(4)]
  truth = [dict(bbx=[0, 0, 9, 9], easy=np.array([i]), hard=[], junk=[]) for i in range(4)]
  with open(tmp_path / "data" / "gnd_rparis6k.pkl", "wb") as file:
    pickle.dump(dict(imlist=names, qimlist=names, gnd=truth), file)
  result = instances.oxford(session_of(tmp_path / "data", size=32))
  assert result.figures == {"rparis6k easy": 100, "rparis6k medium": 100}  # none is hard


def test_pickles_that_run_code_are_refused(tmp_path):
  class Bad:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / "made"),)

  path = tmp_path / "gnd_roxford5k.pkl"
  path.write_bytes(pickle.dumps(Bad()))
  with pytest.raises(LayoutError, match=r"no plain pickle: it wants to run posix.mkdir"):
    instances.read_truth(path)
  assert not (tmp_path / "made").exists()
  path.write_bytes(pickle.dumps([1]))
  with pytest.raises(LayoutError, match="has no imlist"):
    instances.read_truth(path)


def test_missing_images_are_counted(session_of, mini_data, tmp_path):
  shutil.copytree(mini_data / "oxford", tmp_path / "data")
  (tmp_path / "data" / "jpg" / "easy_000_0.jpg").unlink()
  with pytest.raises(LayoutError, match=r"easy_000_0.jpg .* not there; 1 of"):
    instances.oxford(session_of(tmp_path / "data", size=32))
  with pytest.raises(LayoutError, match=r"has no gnd_roxford5k.pkl"):
    instances.oxford(session_of("DAVIS", size=32))


def test_amstertime(session_of, mini_data, tmp_path):
  result = instances.amstertime(session_of("AmsterTime", size=32))
  assert result.protocol["pairs"] == 6 and 0 < result.figures["mAP"] <= 100
  shutil.copytree(mini_data / "AmsterTime", tmp_path / "data")
  for path in (tmp_path / "data" / "new").iterdir():
    shutil.copy(path, tmp_path / "data" / "old" / path.name)
  for path in (tmp_path / "data" / "old").glob("*.jpg"):
    path.unlink()
  same = instances.amstertime(session_of(tmp_path / "data", size=32))
  assert same.figures["mAP"] == same.figures["top-1"] == 100
  (tmp_path / "data" / "old" / "0001.png").unlink()
  with pytest.raises(LayoutError, match=r"has 0001 in one of new/ and old/ only"):
    instances.amstertime(session_of(tmp_path / "data", size=32))
