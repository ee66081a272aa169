import json
import logging

import numpy as np
import pytest

from dinov3_jax.curation import disk
from dinov3_jax.curation.disk import Folder


def test_a_file_is_whole_or_not_there(tmp_path):
  disk.write_array(tmp_path / "a.npy", np.arange(5))

  def fails(file):
    file.write(b"half")
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    disk.write(tmp_path / "a.npy", fails)
  np.testing.assert_array_equal(disk.read_array(tmp_path / "a.npy"), np.arange(5))
  disk.write_json(tmp_path / "b.json", dict(x=[1]))
  assert json.loads((tmp_path / "b.json").read_text()) == dict(x=[1])
  disk.write_text(tmp_path / "c.txt", "caf\udce9\n")
  assert (tmp_path / "c.txt").read_bytes() == b"caf\xe9\n"


@pytest.mark.parametrize("length", [0, 3, 60, 130, 167])
def test_cut_arrays_are_named(tmp_path, length):
  file = tmp_path / "a.npy"
  disk.write_array(file, np.arange(5))
  file.write_bytes(file.read_bytes()[:length])
  for mapped in (False, True):
    with pytest.raises(ValueError, match=r"a\.npy is cut or damaged"):
      disk.read_array(file, mapped)


def test_parts_are_made_once_and_again_where_they_are_cut(tmp_path, caplog):
  made = []

  def make(value):
    made.append(value)
    return np.full(3, value)

  folder = lambda: Folder(tmp_path / "work", dict(seed=1, levels=(3, 2)))
  assert folder().array("x/one", lambda: make(1)).tolist() == [1, 1, 1]
  assert folder().array("x/one", lambda: make(2)).tolist() == [1, 1, 1]
  file = tmp_path / "work" / "x" / "one.npy"
  file.write_bytes(file.read_bytes()[:-1])
  with caplog.at_level(logging.WARNING):
    assert folder().array("x/one", lambda: make(3)).tolist() == [3, 3, 3]
  assert made == [1, 3] and "one.npy is cut or damaged: it is made again" in caplog.text
  folder().drop("x")
  assert not folder().has("x/one")
  with pytest.raises(ValueError, match=r"work was made with other settings \(levels, seed\)"):
    Folder(tmp_path / "work", dict(seed=2, levels=(3,)))


def test_the_middle_of_a_part(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(disk, "SAVE_SECONDS", 0)
  folder = Folder(tmp_path, {})
  assert folder.middle("m") is None
  folder.saver("m")(lambda: dict(i=np.int64(4), x=np.ones(2)))
  assert int(folder.middle("m")["i"]) == 4
  file = tmp_path / "m.npz"
  file.write_bytes(file.read_bytes()[:-30])
  with caplog.at_level(logging.WARNING):
    assert folder.middle("m") is None
  assert "m.npz is cut or damaged" in caplog.text
  monkeypatch.setattr(disk, "SAVE_SECONDS", 1000)
  folder.saver("later")(lambda: pytest.fail("too early"))
  folder.drop("m")
  assert not file.exists()


def test_without_a_disk():
  folder = Folder(None)
  assert folder.array("x/1", lambda: np.ones(1)).tolist() == [1]
  assert folder.has("x/1") and not folder.has("x")
  assert folder.array("x/1", lambda: pytest.fail("is there")).tolist() == [1]
  assert folder.middle("x/1") is None
  folder.saver("x")(lambda: pytest.fail("nothing is kept"))
  folder.drop("x")
  assert not folder.has("x/1")
