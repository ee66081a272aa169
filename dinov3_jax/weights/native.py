"""Reading checkpoints of our own trainer: `<workdir>/checkpoints/<steps done>/`."""

from typing import Any

import orbax.checkpoint as ocp
from etils import epath

FOLDER = "checkpoints"


def latest(workdir: epath.PathLike) -> epath.Path | None:
  """The folder of a run's newest complete checkpoint, named after its step; None if it has none."""
  root = epath.Path(workdir).resolve() / FOLDER
  if not root.exists():
    return None
  found = ocp.path.step.latest_step_metadata(root, ocp.path.step.standard_name_format())
  return found and found.path


def locate(path: epath.PathLike) -> epath.Path:
  """The checkpoint that `path` means: a run's newest one, or the checkpoint's own folder.

  Raises:
    FileNotFoundError: if there is none.
  """
  path = epath.Path(path).resolve()
  found = path if (path / "state").exists() else latest(path)
  if found is None:
    raise FileNotFoundError(
      f"no checkpoint in {path}: give the --workdir of a run that has saved one, or one of the "
      f"numbered folders in its {FOLDER}/")
  return found


def stored_settings(folder: epath.Path) -> dict[str, Any]:
  """The config that a checkpoint was trained with (tuples have become lists)."""
  return read_json(folder / "config")


def stored_arrays(folder: epath.Path) -> dict[str, Any]:
  """What a checkpoint's state holds, as shapes."""
  return ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree


def read_arrays(folder: epath.Path, abstract: Any) -> Any:
  """Reads a checkpoint's state, or a part of it, each shard straight to its device.

  Args:
    abstract: what to read, as `ShapeDtypeStruct`s with shardings.
  """
  arguments = ocp.args.PyTreeRestore(
    abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
    partial_restore=True)
  return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder / "state", arguments)


def read_json(folder: epath.Path) -> Any:
  """A JSON item of a checkpoint."""
  return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder)
