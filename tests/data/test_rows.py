import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dinov3_jax.data import rows as module
from dinov3_jax.data.rows import Rows, is_ours, names_of, read

JOB = dict(dtype="float32", what="a test")
CLS = np.arange(24, dtype=np.float32).reshape(6, 4)
PATCHES = np.arange(72, dtype=np.float32).reshape(6, 2, 3, 2)
NAMES = list("abcdef")


def begin(folder, suffix="safetensors", **changes):
  return Rows(folder / "partial", folder / f"out.{suffix}", JOB | changes)


def write(rows, items, damaged=(), version=0):
  """Rows of some items, marked with a version."""
  good = [i for i in items if i not in damaged]
  rows.append(dict(cls=CLS[good] + version, patches=PATCHES[good]), items,
              [(version, i) for i in items], {i: "no image" for i in damaged})


@pytest.mark.parametrize("committed", [True, False])
def test_a_file_goes_on_from_the_last_commit(tmp_path, monkeypatch, committed):
  monkeypatch.setattr(module, "COMMIT_SECONDS", 1000)
  rows = begin(tmp_path)
  write(rows, range(3))
  if committed:
    rows.commit()
  write(rows, range(3, 5))
  for file in rows._files.values():  # a kill: all is in the files, but nothing says so
    file.flush()
  with begin(tmp_path) as rows:
    assert rows.done == 3 * committed
    write(rows, range(rows.done, 6))
    rows.finish(NAMES)
  arrays, names = read(tmp_path / "out.safetensors")
  assert names == NAMES and not (tmp_path / "partial").exists()
  np.testing.assert_array_equal(arrays["cls"], CLS)
  np.testing.assert_array_equal(arrays["patches"], PATCHES)


def test_commits_come_with_time(tmp_path, monkeypatch):
  monkeypatch.setattr(module, "COMMIT_SECONDS", 0)
  write(begin(tmp_path), range(2))
  assert begin(tmp_path).done == 2


def test_an_error_loses_nothing(tmp_path):
  with pytest.raises(KeyboardInterrupt), begin(tmp_path) as rows:
    write(rows, range(2))
    raise KeyboardInterrupt
  assert begin(tmp_path).done == 2


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_npy_with_what_was_left_out(tmp_path, dtype):
  with begin(tmp_path, "npy", dtype=dtype) as rows:
    rows.append(dict(patches=PATCHES[:2].astype(dtype)), range(3), [(0, 0)] * 3, {1: "no image"})
    rows.finish(["a", "b", "c"])
  arrays, names = read(tmp_path / "out.npy")
  assert names == ["a", "c"] and list(arrays) == ["patches"]
  assert arrays["patches"].dtype == dtype
  np.testing.assert_array_equal(arrays["patches"], PATCHES[:2])
  assert json.loads((tmp_path / "out.json").read_text())["damaged"] == {"b": "no image"}


@pytest.mark.parametrize("chunk", [1, 2**26])
def test_rows_that_come_later_stand_where_they_belong(tmp_path, monkeypatch, chunk):
  monkeypatch.setattr(module, "CHUNK", chunk)
  with begin(tmp_path) as rows:
    write(rows, range(4), damaged=[0, 2, 3])
  with begin(tmp_path) as rows:
    assert rows.damaged == dict.fromkeys([0, 2, 3], "no image")
    assert rows.marks().tolist() == [[-1, -1], [0, 1], [-1, -1], [-1, -1]]
    write(rows, [0, 1, 2], version=7)  # two are mended, one has changed, one stays
    assert rows.marks().tolist() == [[7, 0], [7, 1], [7, 2], [-1, -1]]
    write(rows, [4, 5])
    write(rows, [5], damaged=[5])  # one is no more
    rows.finish(NAMES)
  arrays, names = read(tmp_path / "out.safetensors")
  assert names == ["a", "b", "c", "e"]
  np.testing.assert_array_equal(arrays["cls"], CLS[[0, 1, 2, 4]] + [[7], [7], [7], [0]])
  np.testing.assert_array_equal(arrays["patches"], PATCHES[[0, 1, 2, 4]])


def test_another_job_is_refused_from_its_first_moment(tmp_path):
  begin(tmp_path)
  with pytest.raises(ValueError, match=r"another job \(its what differ\): delete it"):
    begin(tmp_path, what="else")


@pytest.mark.parametrize("what", ["cls", "items", "state", "no state", "other state"])
def test_a_beginning_that_lacks_something_is_begun_anew(tmp_path, what, caplog):
  with begin(tmp_path) as rows:
    write(rows, range(3))
  state = tmp_path / "partial" / "state.json"
  if what == "state":
    state.write_bytes(state.read_bytes()[:-20])
  elif what == "other state":
    state.write_text("[]")
  elif what == "no state":
    state.unlink()
  else:
    os.truncate(tmp_path / "partial" / what, 7)
  with begin(tmp_path) as rows:
    assert rows.done == 0 and not rows.damaged and not len(rows.marks())
    write(rows, range(6))
    rows.finish(NAMES)
  np.testing.assert_array_equal(read(tmp_path / "out.safetensors")[0]["cls"], CLS)
  assert ["beginning anew" in line for line in caplog.messages] == [True] * (what != "no state")


def test_wrong_calls(tmp_path):
  with begin(tmp_path) as rows:
    with pytest.raises(ValueError, match="2 rows of cls for 3 items"):
      rows.append(dict(cls=CLS[:2]), range(3), [(0, 0)] * 3, {})
    rows.append({}, [0], [(0, 0)], {0: "no image"})
    with pytest.raises(ValueError, match="2 names for 1 items"):
      rows.finish(["a", "b"])
    with pytest.raises(ValueError, match="no item has a row"):
      rows.finish(["a"])
  assert not list(tmp_path.glob("out*"))


def test_a_header_that_nobody_could_read_is_not_written(tmp_path, monkeypatch):
  monkeypatch.setattr(module, "HEADER_BYTES", 100)
  with begin(tmp_path) as rows:
    write(rows, range(6))
    with pytest.raises(ValueError, match="do not fit in a"):
      rows.finish(NAMES)
  assert begin(tmp_path).done == 6


@pytest.mark.parametrize("suffix", ["npy", "json"])
@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_has_come_to_be_is_not_overwritten(tmp_path, suffix, links, monkeypatch):
  if not links:
    monkeypatch.setattr(os, "link", refuse_links)
  with begin(tmp_path, "npy") as rows:
    rows.append(dict(cls=CLS), range(6), [(0, 0)] * 6, {})
    (tmp_path / f"out.{suffix}").write_text("mine")
    with pytest.raises(FileExistsError, match=rf"out.{suffix} has come to be meanwhile: move it"):
      rows.finish(NAMES)
  assert [path.read_text() for path in tmp_path.glob("out*")] == ["mine"]
  assert not is_ours(tmp_path / f"out.{suffix}", tmp_path / "partial")
  (tmp_path / f"out.{suffix}").unlink()
  with begin(tmp_path, "npy") as rows:
    rows.finish(NAMES)
  np.testing.assert_array_equal(read(tmp_path / "out.npy")[0]["cls"], CLS)


@pytest.mark.parametrize("suffix", ["npy", "json"])
@pytest.mark.parametrize("links", [True, False])
def test_nor_is_one_that_comes_at_the_last_moment(tmp_path, suffix, links, monkeypatch):
  link, mine = os.link, tmp_path / f"out.{suffix}"

  def late(source, path):
    if path == mine:
      mine.write_text("mine")
    return link(source, path) if links else refuse_links()

  with begin(tmp_path, "npy") as rows:
    rows.append(dict(cls=CLS), range(6), [(0, 0)] * 6, {})
    with monkeypatch.context() as patch:
      patch.setattr(os, "link", late)
      with pytest.raises(FileExistsError, match=rf"out.{suffix} has come to be meanwhile"):
        rows.finish(NAMES)
  assert mine.read_text() == "mine"
  mine.unlink()
  with begin(tmp_path, "npy") as rows:
    rows.finish(NAMES)
  np.testing.assert_array_equal(read(tmp_path / "out.npy")[0]["cls"], CLS)


def refuse_links(*_):
  raise OSError(errno.EPERM, "Operation not permitted")


def test_a_finished_file_that_was_moved_away_is_not_written_into(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(Rows, "_clear", lambda rows: None)  # a kill before the folder is deleted
    with begin(tmp_path) as rows:
      write(rows, range(6))
      rows.finish(NAMES)
  (tmp_path / "out.safetensors").rename(tmp_path / "moved.safetensors")
  before = (tmp_path / "moved.safetensors").read_bytes()
  with begin(tmp_path) as rows:
    assert not rows.finished
    write(rows, [0], version=1)
    rows.finish(NAMES)
  assert (tmp_path / "moved.safetensors").read_bytes() == before
  assert (tmp_path / "out.safetensors").read_bytes() != before


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_costs_nothing_that_was_saved(tmp_path, monkeypatch, call, code):
  with begin(tmp_path) as rows:
    write(rows, range(3))
  fsync, calls = os.fsync, []

  def fail(file):
    calls.append(file)
    if len(calls) >= call:
      raise OSError(code, os.strerror(code))
    fsync(file)

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match=r"cannot be written \((No space|Input/output)") as error, \
       begin(tmp_path) as rows:
    write(rows, range(3, 6))
    rows.finish(NAMES)
  assert "the same command goes on from here" in str(error.value)
  assert ("kB free" in str(error.value) or "MB free" in str(error.value)) == (code == errno.ENOSPC)
  assert str(error.value).count("\n") == 0 and not (tmp_path / "out.safetensors").exists()
  monkeypatch.setattr(os, "fsync", fsync)
  with begin(tmp_path) as rows:
    assert rows.done in (3, 6)
    write(rows, range(rows.done, 6))
    rows.finish(NAMES)
  np.testing.assert_array_equal(read(tmp_path / "out.safetensors")[0]["cls"], CLS)


# A small process that works, and is killed at each of its system calls in turn.
KILLS = """
import os, pathlib, shutil, sys
import numpy as np
from dinov3_jax.data import rows as module
from dinov3_jax.data.rows import Rows, is_ours, names_of, read

suffix, power, links = sys.argv[1], sys.argv[2] == "power", sys.argv[3] == "links"
home, job = pathlib.Path(sys.argv[4]), dict(dtype="float32")
out, partial = home / f"out.{suffix}", home / f"out.{suffix}.partial"
values = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32)
names = [f"{i}.png" for i in range(4)]
module.COMMIT_SECONDS = -1
sys.setswitchinterval(1)
kill_at, events, synced = 10**9, 0, {}


def event(half=None):
  global events
  events += 1
  if events == kill_at:
    if half:
      half()
    for path in home.rglob("*"):
      if power and path.is_file() and path.stat().st_size > synced.get(path.stat().st_ino, 0):
        os.truncate(path, synced.get(path.stat().st_ino, 0))  # a power cut: what was not synced
    os._exit(9)


def watch(name):
  original = getattr(os, name)
  def call(*args, **kwargs):
    event()
    if name == "link" and not links:
      raise OSError(1, "Operation not permitted")
    if name == "fsync":  # noted, not done: it is slow
      stat = os.fstat(args[0])
      synced[stat.st_ino] = stat.st_size
      return None
    return original(*args, **kwargs)
  setattr(os, name, call)


class File:
  def __init__(self, file, mode):
    self.file = file
    if "w" in mode:
      synced[os.fstat(file.fileno()).st_ino] = 0
  def write(self, data):
    event(lambda: (self.file.write(data[:len(data) // 2]), self.file.flush()))
    return self.file.write(data)
  def __getattr__(self, name):
    return getattr(self.file, name)
  def __enter__(self):
    return self
  def __exit__(self, *_):
    self.file.close()


def work():
  if out.exists() and not is_ours(out, partial):  # killed when all was done, but for the folder
    check(partial.exists())
    return partial.rmdir() if partial.exists() else None
  with Rows(partial, out, job) as rows:
    if rows.finished:
      return
    for i in [*rows.damaged, *range(rows.done, 4)]:
      bad = i in (1, 3) and i not in rows.damaged
      rows.append(dict(cls=values[[] if bad else [i]]), [i], [(0, 0)], {i: "bad"} if bad else {})
    for i in list(rows.damaged):
      rows.append(dict(cls=values[[i]]), [i], [(0, 0)], {})
    rows.finish(names)


def check(folder=False):
  arrays, found = read(out)
  np.testing.assert_array_equal(arrays["cls"], values)
  assert found == names and partial.exists() == folder, list(home.rglob("*"))


def forked(kill):
  child = os.fork()
  if not child:
    global kill_at
    kill_at = kill
    synced.update((path.stat().st_ino, path.stat().st_size) for path in home.rglob("*"))
    for name in ("fsync", "link", "rename", "replace", "unlink", "truncate", "rmdir"):
      watch(name)
    plain = pathlib.Path.open
    pathlib.Path.open = lambda self, mode="r", *args, **kwargs: (
        File(plain(self, mode), mode) if set(mode) & set("wa") else
        plain(self, mode, *args, **kwargs))
    try:
      work()
    except BaseException as error:
      print(repr(error), flush=True)
      os._exit(1)
    os._exit(0)
  return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


kills = 0
while True:
  kills += 1
  code = forked(kills)
  if code == 0:
    check()
    break
  assert code == 9, code
  if kills % 3 == 0:  # and again, early on
    assert forked(1 + kills // 3 % 9) in (0, 9)
  if out.exists():
    read(out)  # whole, or not there
  assert not forked(10**9) and check() is None, f"after a kill at event {kills}"
  for path in (out, names_of(out)):
    path.unlink(missing_ok=True)
print(kills)
"""


@pytest.mark.parametrize("suffix, power, links", [
  ("npy", "kill", "links"), ("safetensors", "power", "links"), ("npy", "power", "no links")])
def test_a_kill_at_any_moment_changes_no_row(tmp_path, suffix, power, links):
  process = subprocess.run([sys.executable, "-c", KILLS, suffix, power, links, str(tmp_path)],
                           capture_output=True, text=True)
  assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
  assert int(process.stdout.split()[-1]) > 60
  assert "beginning anew" not in process.stderr  # nothing that was saved is ever lost


def test_names_beside_a_npy():
  assert names_of(pathlib.Path("a/cats.npy")) == pathlib.Path("a/cats.json")


def test_what_else_lies_in_the_folder_stays(tmp_path):
  with begin(tmp_path) as rows:
    (tmp_path / "partial" / "mine.txt").write_text("mine")
    write(rows, range(6))
    rows.finish(NAMES)
  assert [path.name for path in (tmp_path / "partial").iterdir()] == ["mine.txt"]
  shutil.rmtree(tmp_path / "partial")
