"""Files that are whole or not there, and the folder in which a step keeps what it has done.

A file is written under another name, brought to the disk and then renamed. With several processes
all see one file system, the first writes, and what is there is decided by what the first sees.
"""

import json
import logging
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dinov3_jax.data import durable

log = logging.getLogger(__name__)

SAVE_SECONDS = 60  # of work within a part that a kill may cost


def agree(value: bool) -> bool:
  """What the first process says; all must ask."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def wait() -> None:
  """Until all processes are here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("curation")


def write(path: pathlib.Path, writer: Callable[[Any], None], alone: bool = False) -> None:
  """Writes a file as a whole, in the first process; the others wait for it.

  Args:
    path: in a folder that is there.
    writer: called with the open binary file.
    alone: this process writes a file of its own, and nobody waits.
  """
  if alone or jax.process_index() == 0:
    with durable.replacing(path) as file:
      writer(file)
  if not alone:
    wait()


def write_array(path: pathlib.Path, array: np.ndarray, alone: bool = False) -> None:
  """Writes a .npy file."""
  write(path, lambda file: np.save(file, array, allow_pickle=False), alone)


def write_json(path: pathlib.Path, value: Any, alone: bool = False) -> None:
  """Writes a .json file."""
  write(path, lambda file: file.write(json.dumps(value, indent=1).encode()), alone)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file; names that are no valid Unicode keep their bytes."""
  write(path, lambda file: file.write(text.encode(errors="surrogateescape")))


def read_array(path: pathlib.Path, mapped: bool = False) -> np.ndarray:
  """Reads a .npy file.

  Args:
    path: of the file.
    mapped: leave it on the disk.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is cut, or no array.
  """
  try:
    return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise ValueError(f"{path} is cut or damaged") from error


def begin(note: pathlib.Path, job: dict[str, Any], option: str) -> None:
  """Makes the folder of a job with a note of what it is, or finds one that was begun as the same.

  Args:
    note: the .json file in it.
    job: as JSON gives it back.
    option: of the command, by which the user chooses another folder.

  Raises:
    ValueError: the folder was begun with another job; it names the settings that differ.
  """
  if agree(note.exists()):
    before = json.loads(note.read_text())
    other = sorted(key for key in job | before if job.get(key) != before.get(key))
    if other:
      raise ValueError(f"{note.parent} was made with other settings ({', '.join(other)}): delete "
                       f"it, or choose another {option}")
    return
  if jax.process_index() == 0:
    note.parent.mkdir(parents=True, exist_ok=True)
  wait()
  write_json(note, job)


class Folder:
  """What a step has done so far, part by part; the same step again makes only what is missing.

  Args:
    path: of the folder; None keeps parts in memory, for use without a disk.
    job: what decides the results, as JSON; a folder of another job is refused.

  Raises:
    ValueError: the folder has the work of another job.
  """

  def __init__(self, path: pathlib.Path | None, job: dict[str, Any] | None = None):
    self.path = path
    self._memory: dict[str, np.ndarray] = {}
    if path is None:
      return
    begin(path / "job.json", json.loads(json.dumps(job or {})), "--name")

  def has(self, name: str) -> bool:
    """Whether a part is done and whole; one that is cut is named in the log, and counts as missing.
    """
    if self.path is None:
      return name in self._memory
    good, file = False, self.path / f"{name}.npy"
    if jax.process_index() == 0 and file.exists():
      try:
        good = read_array(file, mapped=True) is not None
      except ValueError as error:
        log.warning("%s: it is made again", error)
    return agree(good)

  def array(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """A part: read where it is done and whole, made and kept where not."""
    if self.path is None:
      if name not in self._memory:
        self._memory[name] = make()
      return self._memory[name]
    file = self.path / f"{name}.npy"
    if self.has(name):
      return read_array(file)
    array = make()
    if jax.process_index() == 0:
      file.parent.mkdir(parents=True, exist_ok=True)
    write_array(file, array)
    return array

  def saver(self, name: str) -> Callable[[Callable[[], dict[str, np.ndarray]]], None]:
    """A function that keeps the middle of a part, once a minute at most, for `middle` to find.

    It is called with a function that gives arrays by name.
    """
    saved = time.monotonic()

    def save(get: Callable[[], dict[str, np.ndarray]]):
      nonlocal saved
      if self.path is not None and agree(time.monotonic() - saved > SAVE_SECONDS):
        arrays = get()
        file = self.path / f"{name}.npz"
        if jax.process_index() == 0:
          file.parent.mkdir(parents=True, exist_ok=True)
        write(file, lambda file: np.savez(file, **arrays))
        saved = time.monotonic()

    return save

  def middle(self, name: str) -> dict[str, np.ndarray] | None:
    """The arrays that a `saver` kept last; None where there are none, or they are damaged."""
    found = None
    if self.path is not None and (self.path / f"{name}.npz").exists():
      try:
        with np.load(self.path / f"{name}.npz", allow_pickle=False) as arrays:
          found = dict(arrays)
      except Exception as error:  # the zip, an array or its header may be what is damaged
        log.warning("%s is cut or damaged (%s): its part begins anew", self.path / f"{name}.npz",
                    type(error).__name__)
    return found if agree(found is not None) else None

  def drop(self, name: str) -> None:
    """Deletes parts that nothing needs any more: NAME.npy, NAME.npz, or the folder NAME."""
    if self.path is None:
      for key in [key for key in self._memory if key == name or key.startswith(f"{name}/")]:
        del self._memory[key]
      return
    wait()  # for all to have read them
    if jax.process_index() == 0:
      for file in (self.path / f"{name}.npy", self.path / f"{name}.npz"):
        file.unlink(missing_ok=True)
      shutil.rmtree(self.path / name, ignore_errors=True)
