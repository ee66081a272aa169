"""Checkpoints: everything a run is, read back bit for bit (`writer` writes them).

A run keeps them as `<workdir>/checkpoints/<steps done>/`, each with four items: `state` (arrays of
the training state), `data` (the position in the data stream), `config` (the settings) and
`checksums`.
"""

import json
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from dinov3_jax.train.sharding import path_name
from dinov3_jax.train.state import Params, TrainState
from dinov3_jax.train.writer import Writer
from dinov3_jax.weights.native import (
  FOLDER,
  DamagedCheckpoint,
  latest,
  locate,
  newest_first,
  read_arrays,
  stored_arrays,
  stored_position,
  stored_settings,
)

__all__ = ["FOLDER", "DamagedCheckpoint", "Writer", "changes", "check", "latest", "locate",
           "newest_first", "restore", "restore_teacher", "stored_config", "stored_position"]

# Settings that make another network of parameters of the same shapes.
UNSEEN_IN_SHAPES = ("model.num_heads", "model.ffn", "model.norm", "model.norm_eps",
                    "model.rope.base", "model.rope.min_period", "model.rope.max_period",
                    "model.rope.normalize", "text.num_heads")
# Settings that decide the shapes.
SHAPING = ("model.", "gram.teacher", *(f"{head}.{key}:" for head in ("dino", "ibot") for key in
                                       ("prototypes", "hidden", "bottleneck", "layers")))


class Misfit(ValueError):
  """A checkpoint of other networks than the config describes."""


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
  try:
    _check_arrays(folder, stored_arrays(folder), abstract_state, advice)
  except Misfit as error:
    shaping = [change for change in changes(folder, config) if change.startswith(SHAPING)]
    if not shaping:
      raise
    raise Misfit(f"the checkpoint {folder} has other networks: {', '.join(shaping)}; {advice}"
                 ) from error
  _check_model(folder, config, advice)


def restore(folder: epath.Path, abstract_state: TrainState, verify: bool = True) -> TrainState:
  """Reads a checkpoint that `check` has passed, each shard straight to its device.

  Args:
    folder: from `latest` or `locate`.
    abstract_state: the state as `ShapeDtypeStruct`s with shardings, of any mesh.
    verify: hold its arrays against their checksums.

  Raises:
    DamagedCheckpoint: its arrays cannot be read, or are not those that were written.
  """
  return read_arrays(folder, abstract_state, verify)


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
    raise Misfit(f"the checkpoint {folder} does not fit this config: "
                 f"{'; '.join(different[:3])}{more}: {advice}")


def _check_model(folder: epath.Path, config: ConfigDict, advice: str):
  stored = stored_config(folder)
  foreign = "callable" in config.get("model", {})
  for path in ("model.callable", "model.digest") if foreign else UNSEEN_IN_SHAPES:
    section = path.split(".")[0]
    if section not in config or "depths" in config[section]:
      continue  # shapes say all of a ConvNeXt
    there, here = stored, config
    for key in path.split("."):
      there, here = there[key], here[key]
    if there != here:
      raise ValueError(f"the checkpoint {folder} was trained with {path} = {there!r}, this "
                       f"config has {here!r}: {advice}")
