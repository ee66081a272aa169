"""Reading checkpoints of our own trainer: `<workdir>/checkpoints/<steps done>/`.

What is damaged is a `DamagedCheckpoint`: files that are missing, cut or unreadable, and arrays or
settings whose checksum is not the one that was written with them.
"""

import json
import logging
import math
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from dinov3_jax.models.partition import path_name
from dinov3_jax.weights import checksums
from dinov3_jax.weights.places import FOLDER, is_best

CHECKSUMS = "checksums"  # an item of checkpoints; those of earlier versions have none
CAST_BYTES = 2**30  # of arrays that are read at once where each must then be cast


class DamagedCheckpoint(OSError):
  """A checkpoint that cannot be trusted, and why; one line."""

  def __init__(self, folder: epath.Path, reason: str):
    super().__init__(f"the checkpoint {folder} is damaged: {reason}")
    self.folder, self.reason = folder, reason


def newest_first(workdir: epath.PathLike) -> list[epath.Path]:
  """The folders of a run's complete checkpoints, each named after its step."""
  root = epath.Path(workdir).expanduser().resolve() / FOLDER
  if not root.is_dir():
    return []
  names = ocp.path.step.standard_name_format()
  found = sorted(names.find_all(root), key=lambda metadata: metadata.step, reverse=True)
  return [metadata.path for metadata in found]


def latest(workdir: epath.PathLike) -> epath.Path | None:
  """The folder of a run's newest complete checkpoint, named after its step; None if it has none."""
  return next(iter(newest_first(workdir)), None)


def locate(path: epath.PathLike) -> epath.Path:
  """The checkpoint that `path` means: a run's newest one, the checkpoint's own folder, or the one
  that the file `best` beside it names.

  Raises:
    FileNotFoundError: if there is none.
  """
  path = epath.Path(path).expanduser().resolve()
  if is_best(path):
    path = named_by(path)
  found = path if (path / "state").exists() else latest(path)
  if found is None:
    raise FileNotFoundError(
      f"no checkpoint in {path}: give the --workdir of a run that has saved one, or one of the "
      f"numbered folders in its {FOLDER}/")
  return found


def named_by(path: epath.Path) -> epath.Path:
  """The checkpoint that the file `best` names, which need not be there.

  Raises:
    FileNotFoundError: there is no such file, or it names none.
  """
  try:
    return path.parent / str(int(json.loads(path.read_text())["step"]))
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise FileNotFoundError(f"{path} names no checkpoint ({_line(path, error)}): give one of the "
                            "numbered folders beside it") from error


def stored_settings(folder: epath.Path) -> dict[str, Any]:
  """The config that a checkpoint was trained with (tuples have become lists).

  Raises:
    DamagedCheckpoint: see there.
  """
  return _read_verified(folder, "config")


def check_backbone(config: Mapping[str, Any]):
  """Raises a ValueError if a config is that of a run of text, which has no backbone of its own."""
  if "model" not in config:
    raise ValueError("this run has aligned text with a backbone, and has none of its own: take "
                     "dinov3_jax.load_text for it, or the backbone that it names")


def stored_position(folder: epath.Path) -> Any:
  """Where the data stream stood, as it was given to the writer.

  Raises:
    DamagedCheckpoint: see there.
  """
  return _read_verified(folder, "data")


def stored_arrays(folder: epath.Path) -> dict[str, Any]:
  """What a checkpoint's state holds, as shapes.

  Raises:
    DamagedCheckpoint: see there.
  """
  sums = stored_checksums(folder)
  try:
    tree = ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree
    names = set(_by_name(tree))
  except Exception as error:  # whatever the parsers of its formats make of damage
    raise DamagedCheckpoint(folder, _line(folder, error)) from error
  if sums and names != set(sums["arrays"]):
    odd = sorted(names ^ set(sums["arrays"]))
    raise DamagedCheckpoint(folder, "its list of arrays is not the one that was written: "
                            f"{odd[0]} differs")
  return tree


def read_arrays(folder: epath.Path, abstract: Any, verify: bool = True) -> Any:
  """Reads a checkpoint's state, or a part of it, each shard straight to its device.

  Args:
    folder: of the checkpoint.
    abstract: what to read, as `ShapeDtypeStruct`s with shardings.
    verify: hold the arrays against the checksums that were written with them, on the devices.

  Raises:
    DamagedCheckpoint: see there.
    ValueError: naming an array that it does not have, or has in another shape.
  """
  stored, wanted = _by_name(stored_arrays(folder)), _by_name(abstract)
  _check_there(folder, wanted, stored)
  sums = stored_checksums(folder) if verify else None
  if sums is None:
    return _restore(folder, abstract)
  read = {}
  for part in _parts(abstract, stored):
    arrays = jax.tree.map(lambda x: None if x is ocp.PLACEHOLDER else x, _restore(folder, part))
    found, _ = checksums.of_arrays(arrays)
    wrong = [name for name, value in found.items() if value != sums["arrays"].get(name)]
    if wrong:
      more = f" and {len(wrong) - 1} more arrays" if len(wrong) > 1 else ""
      raise DamagedCheckpoint(folder, f"{wrong[0]}{more} are not what was written: the checksum "
                              "differs")
    cast = lambda path, x: x.astype(wanted[path_name(path)].dtype)
    read |= _by_name(jax.tree_util.tree_map_with_path(cast, arrays))
  return jax.tree_util.tree_map_with_path(lambda path, _: read[path_name(path)], abstract)


def stored_checksums(folder: epath.Path) -> dict[str, Any] | None:
  """The checksums that were written with a checkpoint: `arrays` by path, `config` and `data`.

  None where there are none.

  Raises:
    DamagedCheckpoint: see there.
  """
  return _read_json(folder, CHECKSUMS) if (folder / CHECKSUMS).exists() else None


def _by_name(tree: Any) -> dict[str, Any]:
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _check_there(folder: epath.Path, wanted: dict[str, Any], stored: dict[str, Any]):
  """Orbax itself leaves out what is not there, and some layouts of other shapes, without a word."""
  for name, x in wanted.items():
    if name not in stored:
      raise ValueError(f"the checkpoint {folder} has no array {name}")
    if tuple(x.shape) != tuple(stored[name].shape):
      raise ValueError(f"in the checkpoint {folder}, {name} has the shape "
                       f"{list(stored[name].shape)}, not {list(x.shape)}")


def _parts(abstract: Any, stored: dict[str, Any]) -> Iterator[Any]:
  """What to read as it is stored: all at once, or part by part where each must then be cast.

  A checksum is that of the stored dtype, and both copies of a large model may be too much. A part
  has the structure of the whole, with Orbax's placeholder for every other array.
  """
  leaves = _by_name(abstract)
  if all(x.dtype == stored[name].dtype for name, x in leaves.items()):
    yield abstract
    return
  part_of, part, size = {}, 0, 0
  for name, x in leaves.items():
    part_of[name] = part
    size += math.prod(x.shape) * np.dtype(stored[name].dtype).itemsize
    if size > CAST_BYTES:
      part, size = part + 1, 0
  for part in range(max(part_of.values()) + 1):
    def of_part(path, x, part=part):
      name = path_name(path)
      return x.update(dtype=stored[name].dtype) if part_of[name] == part else ocp.PLACEHOLDER
    yield jax.tree_util.tree_map_with_path(of_part, abstract)


def _restore(folder: epath.Path, abstract: Any) -> Any:
  arguments = ocp.args.PyTreeRestore(
    abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
    partial_restore=True)
  _ignore_abandoned_reads()
  try:
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder / "state", arguments)
  except jax.errors.JaxRuntimeError:
    raise  # of the devices, such as too little memory
  except Exception as error:
    reason = _line(folder, error)
  # Without the error itself, whose stack holds on to all the reads that it has ended.
  raise DamagedCheckpoint(folder, reason)


def _ignore_abandoned_reads():
  """Keeps reads that another one's failure has ended from telling their stacks, in any thread."""
  former = sys.unraisablehook

  def hook(unraisable):
    said = str(unraisable.exc_value)
    if said != "Event loop is closed" and "reading array index" not in said:
      former(unraisable)

  hook.ignores_reads = True
  if not hasattr(former, "ignores_reads"):
    sys.unraisablehook = hook


def _read_verified(folder: epath.Path, item: str) -> Any:
  content, sums = _read_json(folder, item), stored_checksums(folder)
  if sums and checksums.of_json(content) != sums.get(item):
    raise DamagedCheckpoint(folder, f"its {item} is not what was written: the checksum differs")
  return content


def _read_json(folder: epath.Path, item: str) -> Any:
  try:
    # What Orbax's own reader does, but that asks for the devices: too early for a recipe that
    # follows these settings, before the processes of a run have met.
    return json.loads((folder / item / "metadata").read_text())
  except Exception as error:
    reason = f"its {item} cannot be read ({_line(folder, error)})"
    raise DamagedCheckpoint(folder, reason) from error


def _line(folder: epath.Path, error: Exception) -> str:
  """What an error says, on one line that is not long."""
  text = " ".join(str(error).replace(f"{folder}/", "").split())
  if not isinstance(error, ValueError | OSError):
    text = f"{type(error).__name__}: {text}"
  return text if len(text) <= 160 else f"{text[:157]}..."


def _is_no_trace_of_orbax(record: logging.LogRecord) -> bool:
  """Whether to log a line: each thread and task of Orbax logs the same error with its stack, and
  damaged files word for word, where one line of ours says what is wrong."""
  said = record.getMessage()
  if record.name == "asyncio":
    stack = traceback.extract_tb(record.exc_info[2]) if record.exc_info else ()
    return "orbax" not in said and not any("orbax" in frame.filename for frame in stack)
  return "orbax" not in record.pathname or not (
    record.exc_info or said.startswith("Failed to json parse"))


for _name in ("absl", "asyncio"):
  logging.getLogger(_name).addFilter(_is_no_trace_of_orbax)
