"""Checkpoints: everything a run is, written beside training and read back bit for bit.

A run keeps them as `<workdir>/checkpoints/<steps done>/`, each with three items: `state` (arrays of
the training state), `data` (the position in the data stream) and `config` (the settings).
"""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from dinov3_jax.train.sharding import path_name
from dinov3_jax.train.state import Params, TrainState
from dinov3_jax.weights.native import (
  FOLDER,
  latest,
  locate,
  read_arrays,
  read_json,
  stored_arrays,
  stored_settings,
)

__all__ = ["FOLDER", "Writer", "changes", "check", "check_start", "latest", "locate", "restore",
           "restore_teacher", "start", "stored_config", "stored_position"]

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

  def save(self, step: int, state: TrainState, position: Any, config: ConfigDict):
    """Copies `state` off the devices and writes it in the background; a step saved before is left.

    Args:
      step: steps done.
      state: after them.
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


def stored_config(folder: epath.Path) -> ConfigDict:
  """The settings that a checkpoint was trained with (tuples have become lists)."""
  return ConfigDict(stored_settings(folder))


def changes(folder: epath.Path, config: ConfigDict) -> list[str]:
  """The settings that differ from a checkpoint's, in words."""
  flat = lambda settings: flatten_dict(json.loads(settings.to_json()), sep=".")
  old, new = flat(stored_config(folder)), flat(config)
  return [f"{key}: {old.get(key)} -> {new[key]}" for key in new if old.get(key) != new[key]]


def check(folder: epath.Path, abstract_state: TrainState, config: ConfigDict):
  """Says whether a run can go on from `folder` with this state and these settings.

  Raises:
    ValueError: naming the first arrays, or the setting, that differ.
  """
  advice = "go on with the settings it was made with, or choose another --workdir"
  _check_arrays(folder, stored_arrays(folder), abstract_state, advice)
  _check_model(folder, config, advice)


def restore(folder: epath.Path, abstract_state: TrainState) -> TrainState:
  """Reads a checkpoint that `check` has passed, each shard straight to its device.

  Args:
    folder: from `latest` or `locate`.
    abstract_state: the state as `ShapeDtypeStruct`s with shardings, of any mesh.
  """
  return read_arrays(folder, abstract_state)


def stored_position(folder: epath.Path) -> Any:
  """Where the data stream stood, as it was given to `Writer.save`."""
  return read_json(folder / "data")


def check_start(config: ConfigDict, abstract_state: TrainState):
  """Says whether the runs that `init_from` and `gram.init_from` name can start this one.

  Raises:
    FileNotFoundError: if one of them has no checkpoint.
    ValueError: naming the first parameters, or the setting, that differ.
  """
  for name, path, wanted in _starts(config, abstract_state):
    folder = locate(path)
    advice = f"take the same model and heads, or another config.{name}"
    _check_arrays(folder, _stored_teacher(folder, wanted), wanted, advice)
    _check_model(folder, config, advice)


def start(config: ConfigDict, state: TrainState) -> TrainState:
  """The state of a run that begins with another one's teacher.

  That teacher, heads included, becomes student and teacher, and its backbone the Gram teacher,
  unless `gram.init_from` names another run for that. Moments and step stay those of a fresh state.
  """
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
  for name, path, wanted in _starts(config, abstract):
    teacher, _ = restore_teacher(path, wanted)
    if name == "init_from":
      # Of its own memory each, or the step could not reuse that of the state it replaces.
      state = state.replace(student=jax.tree.map(jnp.copy, teacher), teacher=teacher)
    if state.gram_teacher is not None:
      gram = jax.tree.map(jnp.copy, teacher["backbone"])
      state = state.replace(gram_teacher={"backbone": gram})
  return state


def restore_teacher(path: epath.PathLike, abstract_teacher: Params | None = None
                    ) -> tuple[Params, ConfigDict]:
  """Reads the teacher alone from a checkpoint, and the settings it was trained with.

  Args:
    path: a run's folder, or that of one of its checkpoints.
    abstract_teacher: `{"backbone", "dino_head", "ibot_head"}`, or some of them, as
      `ShapeDtypeStruct`s with shardings; None reads all to the first device.

  Returns:
    The teacher's parameters, and the stored config.

  Raises:
    FileNotFoundError: if there is no checkpoint.
    ValueError: naming the first parameters that differ from `abstract_teacher`.
  """
  folder = locate(path)
  stored = _stored_teacher(folder, abstract_teacher)
  if abstract_teacher is None:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract_teacher = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), stored)
  _check_arrays(folder, stored, abstract_teacher, "build the model from its stored config")
  return read_arrays(folder, {"teacher": abstract_teacher})["teacher"], stored_config(folder)


def _starts(config: ConfigDict, state: TrainState) -> list[tuple[str, str, Params]]:
  """(setting, path, what is read from there) of every run that this one starts from."""
  starts = []
  if config.init_from:
    starts.append(("init_from", config.init_from, state.teacher))
  if config.gram.init_from and state.gram_teacher is not None:
    starts.append(("gram.init_from", config.gram.init_from, state.gram_teacher))
  return starts


def _stored_teacher(folder: epath.Path, wanted: Params | None) -> Params:
  stored = stored_arrays(folder)["teacher"]
  return {name: part for name, part in stored.items() if wanted is None or name in wanted}


def _shapes(tree: Any) -> dict[str, str]:
  """Each array's path, and its dtype and shape in words."""
  return {path_name(path): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
          for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _check_arrays(folder: epath.Path, stored: Any, wanted: Any, advice: str):
  stored, wanted = _shapes(stored), _shapes(wanted)
  different = [f"{path} is {stored.get(path, 'missing')} there, {wanted.get(path, 'missing')} here"
               for path in [*wanted, *sorted(stored.keys() - wanted.keys())]
               if stored.get(path) != wanted.get(path)]
  if different:
    more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
    raise ValueError(f"the checkpoint {folder} does not fit this config: "
                     f"{'; '.join(different[:3])}{more}: {advice}")


def _check_model(folder: epath.Path, config: ConfigDict, advice: str):
  stored = stored_config(folder).model
  for path in UNSEEN_IN_SHAPES:
    there, here = stored, config.model
    for key in path.split("."):
      there, here = there[key], here[key]
    if there != here:
      raise ValueError(f"the checkpoint {folder} was trained with model.{path} = {there!r}, this "
                       f"config has {here!r}: {advice}")
