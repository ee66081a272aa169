"""Checkpoints: everything a run is, written beside training and read back bit for bit.

A run keeps them as `<workdir>/checkpoints/<steps done>/`, each with three items: `state` (the arrays
of the training state), `data` (the position in the data stream) and `config` (the settings).
"""

import json
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

FOLDER = "checkpoints"
# Settings that make another network of parameters of the same shapes.
UNSEEN_IN_SHAPES = ("num_heads", "ffn", "norm", "norm_eps", "rope.base", "rope.min_period",
                    "rope.max_period", "rope.normalize")


class Writer:
  """Saves a run's checkpoints; writing goes on while training continues.

  A checkpoint appears under its own name only when it is complete, so a killed process leaves the
  former ones as they were. The last `keep` stay, and every one whose step is a multiple of
  `keep_every` (0: none beyond the last).
  """

  def __init__(self, workdir: epath.PathLike, keep: int, keep_every: int):
    kept = [policies.LatestN(keep)]
    if keep_every:
      kept.append(policies.EveryNSteps(keep_every))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True)
    self._manager = ocp.CheckpointManager(epath.Path(workdir).resolve() / FOLDER, options=options)

  def save(self, step: int, state: Any, position: Any, config: ConfigDict):
    """Copies `state` off the devices and writes it in the background; a step saved before is left.

    Args:
      step: steps done.
      state: a pytree of arrays.
      position: of the data stream after `step` batches, anything that JSON can hold.
      config: the run's settings.
    """
    if step in self._manager.all_steps():
      return
    self._manager.save(step, args=ocp.args.Composite(
      state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(position),
      config=ocp.args.JsonSave(json.loads(config.to_json()))))

  def close(self):
    """Waits until everything is on disk."""
    self._manager.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


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


def stored_config(folder: epath.Path) -> ConfigDict:
  """The settings that a checkpoint was trained with (tuples have become lists)."""
  return ConfigDict(_read_json(folder / "config"))


def check(folder: epath.Path, abstract_state: Any, config: ConfigDict):
  """Raises a ValueError unless the run that left `folder` can go on with this state and model."""
  _check_tree(folder, "", abstract_state)
  _check_model(folder, config)


def restore(folder: epath.Path, abstract_state: Any) -> tuple[Any, Any]:
  """Reads a checkpoint, each shard straight to its device.

  Args:
    folder: from `latest` or `locate`.
    abstract_state: the state as `ShapeDtypeStruct`s with shardings, of any mesh.

  Returns:
    The state, and the position of the data stream.
  """
  check_only = {"": abstract_state}
  _check_tree(folder, "", check_only[""])
  return _read_arrays(folder, abstract_state), _read_json(folder / "data")


def check_teacher(path: epath.PathLike, abstract_teacher: Any, config: ConfigDict):
  """Raises unless the teacher stored at `path` has the shapes of `abstract_teacher` and its model.

  Raises:
    FileNotFoundError: if there is no checkpoint.
    ValueError: naming the parameters, or the setting, that differ.
  """
  folder = locate(path)
  _check_tree(folder, "teacher", abstract_teacher)
  _check_model(folder, config)


def restore_teacher(path: epath.PathLike, abstract_teacher: Any = None) -> tuple[Any, ConfigDict]:
  """Reads the teacher alone from a checkpoint, and the settings it was trained with.

  Args:
    path: a run's folder, or that of one of its checkpoints.
    abstract_teacher: the wanted part of `{"backbone", "dino_head", "ibot_head"}` as
      `ShapeDtypeStruct`s with shardings; None reads all of it to the first device.

  Returns:
    The teacher's parameters, and the stored config.

  Raises:
    FileNotFoundError: if there is no checkpoint.
    ValueError: naming the first parameters that differ from `abstract_teacher`.
  """
  folder = locate(path)
  if abstract_teacher is None:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract_teacher = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
      _metadata(folder)["teacher"])
  _check_tree(folder, "teacher", abstract_teacher)
  return _read_arrays(folder, {"teacher": abstract_teacher})["teacher"], stored_config(folder)
