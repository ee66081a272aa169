"""A folder that one process at a time may use.

  with FolderLock("runs/a", "training"):
    ...

The lock is `flock` on a file in the folder. The kernel drops it when its process ends, however that
ends, so a lock never outlives its holder. On file systems without `flock` the file's existence is
the lock: one that a dead process of the same host has left is taken over, one of another host must
be deleted by hand.
"""

import errno
import json
import os
import pathlib
import socket
import time
import weakref

try:
  import fcntl
except ModuleNotFoundError:  # Windows
  fcntl = None

NAME = ".lock"
OWNER = ".lock.owner"  # instead, where there is no flock
NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

_held = weakref.WeakSet()


class Locked(BlockingIOError):
  """The folder is in use; says by whom."""


class FolderLock:
  """Keeps others out of a folder, from the entry of its `with` block to the exit.

  A second lock is refused whoever asks for it, the same process included. Child processes do not
  inherit the lock: when their parent is killed, it is free. Folders in buckets (`gs://...`) know no
  locks; there nothing is done.

  Args:
    path: of the folder, which is made if it is not there.
    what: uses it, in a word or two, for the message to the others.

  Raises (on entry):
    Locked: another holds the lock; the line names its process, host and time.
    OSError: the folder cannot be made, or nothing can be written there.
  """

  def __init__(self, path: str | os.PathLike, what: str):
    self._remote = "://" in os.fspath(path)
    self._folder, self._what, self._file, self._path = pathlib.Path(path), what, None, None

  def __enter__(self):
    if self._file is not None:
      raise Locked(_in_use(self._folder, _me(self._what)))
    if self._remote:
      return self
    try:
      for last in (False, True):
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
          if not self._take():
            self._take_by_file()
          break
        except FileNotFoundError:  # the former holder has just deleted the folder
          if last:
            raise
    except Locked:
      raise
    except OSError as error:
      raise OSError(f"cannot lock {self._folder} ({error.strerror or error}): it must be a folder "
                    "that may be written to") from error
    _held.add(self)
    return self

  def __exit__(self, *_):
    if self._file is None:
      return
    # Deleted while the lock still holds: whoever has opened this file meanwhile will notice.
    if _is_at(self._file, self._path):
      self._path.unlink()
    self._drop()

  def _drop(self):
    os.close(self._file)
    self._file = None
    _held.discard(self)

  def _take(self) -> bool:
    """Locks the file; false where the file system has no `flock`."""
    self._path = self._folder / NAME
    while fcntl:
      file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        holder = os.read(file, 4096)
        os.close(file)
        if isinstance(error, BlockingIOError):
          raise Locked(_in_use(self._folder, holder)) from None
        if error.errno not in NO_FLOCK:
          raise
        self._path.unlink(missing_ok=True)
        return False
      if _is_at(file, self._path):
        break
      os.close(file)  # the former holder has deleted it
    else:
      return False
    self._file = file
    try:
      os.ftruncate(file, 0)
      os.pwrite(file, _me(self._what), 0)
    except OSError:
      pass  # on a full disk the lock holds as well, without a name
    return True

  def _take_by_file(self):
    """Makes the file that is the lock, in place of one that a dead process of this host left."""
    self._path = self._folder / OWNER
    for _ in range(10):
      try:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
      except FileExistsError:
        holder = _read(self._path)
        if holder is None:
          continue
        if not _is_dead(holder):
          raise Locked(f"{_in_use(self._folder, holder)}; if it is no longer running, delete "
                       f"{self._path}") from None
        self._remove(holder)
        continue
      try:
        os.write(file, _me(self._what))
      except OSError:
        os.close(file)
        self._path.unlink()
        raise
      self._file = file
      return
    raise Locked(_in_use(self._folder, b""))

  def _remove(self, holder: bytes):
    """Deletes the file if it still is that of `holder`: another may have taken it over by now."""
    aside = self._folder / f"{OWNER}.{socket.gethostname()}.{os.getpid()}"
    try:
      self._path.rename(aside)
    except FileNotFoundError:
      return
    if aside.read_bytes() != holder:
      os.link(aside, self._path)
    aside.unlink()


def _me(what: str) -> bytes:
  pid = os.getpid()
  since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
  return json.dumps(dict(what=what, host=socket.gethostname(), process=pid, since=since,
                         started=_started(pid))).encode()


def _in_use(folder: pathlib.Path, holder: bytes) -> str:
  try:
    who = json.loads(holder)
    by = f"{who['what']} (process {who['process']} on {who['host']}, since {who['since']})"
  except (ValueError, KeyError, TypeError):
    by = "another process"
  return f"{folder} is in use by {by}: wait for its end, stop it, or take another folder"


def _is_dead(holder: bytes) -> bool:
  """Whether a file of a lock was left by a process of this host that is no more."""
  try:
    who = json.loads(holder)
    if who["host"] != socket.gethostname():
      return False
    os.kill(who["process"], 0)
    return who["started"] != _started(who["process"])  # the number was given to another
  except ProcessLookupError:
    return True
  except (ValueError, KeyError, TypeError, OSError):
    return False


def _started(pid: int) -> str | None:
  """When a process began, in the kernel's ticks since boot; None where nothing says so."""
  try:
    # The name, which stands in parentheses, may hold anything.
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
  except (OSError, IndexError):
    return None


def _is_at(file: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(file), os.stat(path))
  except FileNotFoundError:
    return False


def _read(path: pathlib.Path) -> bytes | None:
  try:
    return path.read_bytes()
  except FileNotFoundError:
    return None


def _close_in_child():
  """A forked child shares the lock as long as it has the file open."""
  for lock in list(_held):
    lock._drop()


if hasattr(os, "register_at_fork"):
  os.register_at_fork(after_in_child=_close_in_child)
