"""Arrays that grow on disk row by row, safe from kills, and end as one file."""

import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors import safe_open

COMMIT_SECONDS = 10  # of work that a kill may cost


class Rows:
  """Arrays that grow row by row in a folder, and become one file.

  What `commit` has seen survives a kill: `state.json` says how much of each raw file counts.

  Args:
    folder: may hold the beginning of the same job.
    job: what decides the rows, as JSON; its `dtype` is that of all arrays.

  Attributes:
    done: items that are through, the damaged ones included.
    damaged: why, by name, of items that have no row.

  Raises:
    ValueError: the folder holds the beginning of another job.
  """

  def __init__(self, folder: pathlib.Path, job: dict[str, Any]):
    self._folder, self._job, self._files = folder, job, {}
    self.done, self.damaged, self._shapes = 0, {}, {}
    if (folder / "state.json").exists():
      state = json.loads((folder / "state.json").read_text())
      other = [key for key in job | state["job"] if job.get(key) != state["job"].get(key)]
      if other:
        raise ValueError(f"{folder} has the beginning of another job (its {', '.join(other)} "
                         "differ): delete it, or choose another --out")
      self.done, self.damaged, self._shapes = state["done"], state["damaged"], state["shapes"]
    folder.mkdir(exist_ok=True)
    for key, shape in self._shapes.items():
      os.truncate(folder / key, self._count * self._bytes(shape))
    self._committed = time.monotonic()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._folder.exists():
      self.commit()
    for file in self._files.values():
      file.close()

  @property
  def _count(self) -> int:
    return self.done - len(self.damaged)

  def _bytes(self, shape: Sequence[int]) -> int:
    return math.prod(shape) * np.dtype(self._job["dtype"]).itemsize

  def append(self, arrays: dict[str, np.ndarray], items: int, damaged: dict[str, str]):
    """Adds the rows of so many items, less the damaged ones."""
    for key, rows in arrays.items():
      if key not in self._files:
        self._files[key] = (self._folder / key).open("ab")
        self._shapes[key] = rows.shape[1:]
      self._files[key].write(rows.tobytes())
    self.done += items
    self.damaged |= damaged
    if time.monotonic() - self._committed > COMMIT_SECONDS:
      self.commit()

  def commit(self):
    """Makes sure that all rows so far survive."""
    for file in self._files.values():
      file.flush()
      os.fsync(file.fileno())
    state = dict(job=self._job, done=self.done, damaged=self.damaged, shapes=self._shapes)
    new = self._folder / "state.new"
    new.write_text(json.dumps(state))
    new.replace(self._folder / "state.json")
    self._committed = time.monotonic()

  def finish(self, out: pathlib.Path, names: Sequence[str]):
    """Writes a .safetensors or .npy file, and deletes the folder."""
    self.commit()
    notes = dict(self._job, names=names, damaged=self.damaged)
    shapes = {key: [self._count, *shape] for key, shape in self._shapes.items()}
    whole = self._folder / "whole"
    with whole.open("wb") as file:
      if out.suffix == ".npy":
        (key, shape), = shapes.items()
        names_of(out).write_text(json.dumps(dict(notes, array=key), indent=0))
        np.lib.format.write_array_header_1_0(file, dict(
            descr=np.dtype(self._job["dtype"]).str, fortran_order=False, shape=tuple(shape)))
      else:
        file.write(self._safetensors_header(shapes, notes))
      for key in shapes:
        with (self._folder / key).open("rb") as rows:
          shutil.copyfileobj(rows, file)
    whole.replace(out)
    shutil.rmtree(self._folder)

  def _safetensors_header(self, shapes: dict[str, list[int]], notes: dict[str, Any]) -> bytes:
    header, end = {"__metadata__": {key: x if isinstance(x, str) else json.dumps(x)
                                    for key, x in notes.items()}}, 0
    for key, shape in shapes.items():
      start, end = end, end + self._bytes(shape)
      header[key] = dict(dtype=dict(float32="F32", float16="F16")[self._job["dtype"]], shape=shape,
                         data_offsets=[start, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def names_of(path: pathlib.Path) -> pathlib.Path:
  """The file beside a .npy that has the names of its rows."""
  return path.with_suffix(".json")


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], list[str]]:
  """The arrays of a file that `Rows` wrote, and the names of their rows."""
  path = pathlib.Path(path)
  if path.suffix == ".npy":
    notes = json.loads(names_of(path).read_text())
    return {notes["array"]: np.load(path, mmap_mode="r")}, notes["names"]
  with safe_open(path, "numpy") as file:
    arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
    return arrays, json.loads(file.metadata()["names"])
