import numpy as np
import pytest

from dinov3_jax.data import rows as module
from dinov3_jax.data.rows import Rows, read

JOB = dict(dtype="float32", what="a test")
CLS = np.arange(24, dtype=np.float32).reshape(6, 4)
PATCHES = np.arange(72, dtype=np.float32).reshape(6, 2, 3, 2)
NAMES = list("abcdef")


def write(rows, start, stop):
  rows.append(dict(cls=CLS[start:stop], patches=PATCHES[start:stop]), stop - start, {})


def test_a_file_goes_on_from_the_last_commit(tmp_path, monkeypatch):
  monkeypatch.setattr(module, "COMMIT_SECONDS", 1000)
  rows = Rows(tmp_path / "partial", JOB)
  write(rows, 0, 3)
  rows.commit()
  write(rows, 3, 5)
  for file in rows._files.values():  # a kill: all is in the files, but nothing says so
    file.flush()
  with Rows(tmp_path / "partial", JOB) as rows:
    assert rows.done == 3
    write(rows, 3, 6)
    rows.finish(tmp_path / "out.safetensors", NAMES)
  arrays, names = read(tmp_path / "out.safetensors")
  assert names == NAMES and not (tmp_path / "partial").exists()
  np.testing.assert_array_equal(arrays["cls"], CLS)
  np.testing.assert_array_equal(arrays["patches"], PATCHES)


def test_commits_come_with_time(tmp_path, monkeypatch):
  monkeypatch.setattr(module, "COMMIT_SECONDS", 0)
  write(Rows(tmp_path / "partial", JOB), 0, 2)
  assert Rows(tmp_path / "partial", JOB).done == 2


def test_an_error_loses_nothing(tmp_path):
  with pytest.raises(KeyboardInterrupt), Rows(tmp_path / "partial", JOB) as rows:
    write(rows, 0, 2)
    raise KeyboardInterrupt
  assert Rows(tmp_path / "partial", JOB).done == 2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npy_with_what_was_left_out(tmp_path, dtype):
  with Rows(tmp_path / "partial", dict(JOB, dtype=dtype)) as rows:
    rows.append(dict(patches=PATCHES[:2].astype(dtype)), 3, dict(b="no image"))
    rows.finish(tmp_path / "out.npy", ["a", "c"])
  arrays, names = read(tmp_path / "out.npy")
  assert names == ["a", "c"] and list(arrays) == ["patches"]
  assert arrays["patches"].dtype == dtype
  np.testing.assert_array_equal(arrays["patches"], PATCHES[:2])


def test_another_job_is_refused(tmp_path):
  with Rows(tmp_path / "partial", JOB) as rows:
    write(rows, 0, 2)
  with pytest.raises(ValueError, match=r"another job \(its what differ\): delete it"):
    Rows(tmp_path / "partial", dict(JOB, what="else"))
