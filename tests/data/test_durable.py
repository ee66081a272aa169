import contextlib
import os
import pathlib

import pytest

from dinov3_jax.data import durable


@pytest.fixture
def events(monkeypatch):
  """What was synced and renamed, in order, by the names at that time."""
  events, sync, rename = [], durable.sync, pathlib.Path.replace

  def note_sync(path):
    sync(path)
    events.append(("sync", path.name))

  def note_rename(old, new):
    events.append(("rename", new.name))
    return rename(old, new)

  monkeypatch.setattr(durable, "sync", note_sync)
  monkeypatch.setattr(pathlib.Path, "replace", note_rename)
  return events


def test_a_text_is_on_disk_before_it_has_its_name_and_the_name_is_too(tmp_path, events):
  durable.write_text(tmp_path / "config.json", "new")
  assert events == [("sync", "config.json.new"), ("rename", "config.json"),
                    ("sync", tmp_path.name)]
  assert os.listdir(tmp_path) == ["config.json"]


def test_a_text_replaces_another(tmp_path):
  path = tmp_path / "config.json"
  (tmp_path / "config.json.new").write_text("what a kill has left, which is longer")
  for text in ("first", "second", ""):
    durable.write_text(path, text)
    assert path.read_text() == text and os.listdir(tmp_path) == ["config.json"]


def test_a_text_that_cannot_be_written_leaves_the_former_one(tmp_path, monkeypatch):
  path = tmp_path / "config.json"
  durable.write_text(path, "former")

  def full(descriptor):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    durable.write_text(path, "new")
  assert path.read_text() == "former"


def test_all_below_a_folder_is_synced_before_the_folder(tmp_path, events):
  (tmp_path / "a" / "b").mkdir(parents=True)
  for name in ("one", "a/two", "a/b/three"):
    (tmp_path / name).write_text(name)
  durable.sync_tree(tmp_path)
  names = [name for _, name in events]
  assert sorted(names) == sorted(["one", "a", "two", "b", "three", tmp_path.name])
  for file, folder in (("one", tmp_path.name), ("two", "a"), ("three", "b")):
    assert names.index(file) < names.index(folder)


def test_what_is_not_there_cannot_be_synced(tmp_path):
  with pytest.raises(FileNotFoundError):
    durable.sync(tmp_path / "absent")


@pytest.mark.parametrize("fails", [False, True])
def test_no_descriptor_stays_open(tmp_path, monkeypatch, fails):
  def fsync(descriptor):
    synced.append(descriptor)
    if fails:
      raise OSError(5, "Input/output error")

  synced = []
  monkeypatch.setattr(os, "fsync", fsync)
  for path in (tmp_path, tmp_path / "file"):
    if path != tmp_path:
      path.write_text("x")
    with pytest.raises(OSError, match="Input/output") if fails else contextlib.nullcontext():
      durable.sync(path)
    with pytest.raises(OSError, match="Bad file descriptor"):
      os.fstat(synced[-1])
  assert len(synced) == 2


def test_a_block_that_fails_leaves_the_former_file(tmp_path):
  path = tmp_path / "rows.npy"
  path.write_bytes(b"former")
  with pytest.raises(RuntimeError, match="halfway"), durable.replacing(path) as file:
    file.write(b"half")
    raise RuntimeError("halfway")
  assert path.read_bytes() == b"former"
