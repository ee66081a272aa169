import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from dinov3_jax.data import lock as module
from dinov3_jax.data.lock import FolderLock, Locked

HOLD = """
import subprocess, sys, time
from dinov3_jax.data.lock import FolderLock
with FolderLock(sys.argv[1], "features"):
  {start}
  time.sleep(60)
"""
# A child that outlives its parent: of an exec, of a fork, and none. Each prints the child's number.
STARTS = dict(
  spawn="""print(subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL).pid, flush=True)""",
  fork="""import os
  if not os.fork():
    print(os.getpid(), flush=True)""",
  alone="print(0, flush=True)")


@pytest.fixture
def no_flock(monkeypatch):
  """A file system without `flock`, as some network mounts are."""
  def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")
  monkeypatch.setattr(fcntl, "flock", refuse)


def holder(folder, start):
  """A process that holds the lock, and its child's number."""
  process = subprocess.Popen([sys.executable, "-c", HOLD.format(start=STARTS[start]), folder],
                             stdout=subprocess.PIPE, text=True)
  return process, int(process.stdout.readline())


@pytest.mark.parametrize("start", STARTS)
def test_the_second_is_refused_and_a_dead_ones_lock_is_free(tmp_path, start):
  process, child = holder(tmp_path, start)
  try:
    with pytest.raises(Locked) as refusal, FolderLock(tmp_path, "training"):
      pass
    message = str(refusal.value)
    for part in (str(tmp_path), "in use by features", f"process {process.pid} on",
                 socket.gethostname(), f"since {time.strftime('%Y-%m-%d')}"):
      assert part in message
    assert "\n" not in message and isinstance(refusal.value, BlockingIOError)
    process.kill()
    process.wait()
    if child:
      os.kill(child, 0)  # it is still there
    with FolderLock(tmp_path, "training"):
      pass
  finally:
    process.kill()
    process.wait()
    process.stdout.close()
    if child:
      os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("flock", ["flock", "no flock"])
def test_one_process_locks_once(tmp_path, flock, request):
  if flock == "no flock":
    request.getfixturevalue("no_flock")
  folder = tmp_path / "made" / "of it"
  with FolderLock(folder, "features") as lock:
    with pytest.raises(Locked, match=f"in use by features .process {os.getpid()} on "), \
         FolderLock(folder, "training"):
      pass
    with pytest.raises(Locked), lock:
      pass
    assert len(list(folder.iterdir())) == 1  # a refused one takes nothing away
  assert not list(folder.iterdir())
  with FolderLock(folder, "features"), FolderLock(tmp_path, "another folder"):
    pass


def test_a_lock_whose_file_was_deleted_meanwhile_does_not_count(tmp_path, monkeypatch):
  flock, files = fcntl.flock, []

  def late(file, how):  # the former holder ends between opening and locking
    if not files:
      (tmp_path / module.NAME).unlink()
    files.append(file)
    flock(file, how)

  monkeypatch.setattr(fcntl, "flock", late)
  with FolderLock(tmp_path, "features"):
    assert len(files) == 2 and (tmp_path / module.NAME).exists()
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(Locked), FolderLock(tmp_path, "features"):
      pass


def test_the_lock_of_a_folder_that_is_deleted(tmp_path):
  with FolderLock(tmp_path / "gone", "features"):
    (tmp_path / "gone" / module.NAME).unlink()
    (tmp_path / "gone").rmdir()
  assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("changes, taken", [
  (dict(), False),
  (dict(host="elsewhere", process=2**22 + 1), False),
  (dict(process=2**22 + 1), True),  # above any process number
  (dict(started="1"), True),  # the number has been given to another process
])
def test_without_flock_only_a_dead_process_of_this_host_loses_it(tmp_path, no_flock, changes,
                                                                 taken):
  owner = json.loads(module._me("features")) | changes
  (tmp_path / module.OWNER).write_text(json.dumps(owner))
  if taken:
    with FolderLock(tmp_path, "training"):
      assert json.loads((tmp_path / module.OWNER).read_text())["what"] == "training"
    assert not list(tmp_path.iterdir())
  else:
    with pytest.raises(Locked, match="if it is no longer running, delete"), \
         FolderLock(tmp_path, "training"):
      pass
    assert json.loads((tmp_path / module.OWNER).read_text()) == owner


def test_without_flock_two_do_not_both_take_over(tmp_path, no_flock, monkeypatch):
  dead = json.dumps(dict(json.loads(module._me("features")), process=2**22 + 1)).encode()
  living = module._me("the quicker one")
  (tmp_path / module.OWNER).write_bytes(dead)
  is_dead = module._is_dead

  def slow(holder):
    answer = is_dead(holder)
    (tmp_path / module.OWNER).write_bytes(living)
    return answer

  monkeypatch.setattr(module, "_is_dead", slow)
  with pytest.raises(Locked, match="the quicker one"), FolderLock(tmp_path, "training"):
    pass
  assert [path.read_bytes() for path in tmp_path.iterdir()] == [living]


def test_a_folder_that_is_deleted_meanwhile_is_made_again(tmp_path, monkeypatch):
  folder, plain, calls = tmp_path / "partial", os.open, []

  def late(path, *args):
    calls.append(path)
    if len(calls) == 1:
      folder.rmdir()
    return plain(path, *args)

  monkeypatch.setattr(os, "open", late)
  with FolderLock(folder, "features"), pytest.raises(Locked), FolderLock(folder, "features"):
    pass
  assert len(calls) == 3


def test_an_unreadable_holder_still_holds(tmp_path):
  with FolderLock(tmp_path, "features"):
    (tmp_path / module.NAME).write_text("{")
    with pytest.raises(Locked, match="in use by another process"), FolderLock(tmp_path, "x"):
      pass


def test_a_full_disk_still_locks(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
  monkeypatch.setattr(os, "pwrite", full)
  with FolderLock(tmp_path, "features"), pytest.raises(Locked), FolderLock(tmp_path, "features"):
    pass


def test_folders_that_cannot_be_locked(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  (tmp_path / "odd" / module.NAME).mkdir(parents=True)
  for name in ("file", "odd"):
    with pytest.raises(OSError, match=f"cannot lock .*{name} .*a folder that may be written to"), \
         FolderLock(tmp_path / name, "features"):
      pass

  def read_only(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")
  monkeypatch.setattr(os, "open", read_only)
  with pytest.raises(OSError, match=r"cannot lock .*\(Read-only file system\)") as error, \
       FolderLock(tmp_path, "features"):
    pass
  assert not isinstance(error.value, Locked)


def test_buckets_have_no_locks(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with FolderLock("gs://bucket/run", "training"):
    assert not list(tmp_path.iterdir())
