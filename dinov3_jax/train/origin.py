"""What a run starts from: anybody's weights, with their heads where they have some."""

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov3_jax.models.variants import differences
from dinov3_jax.train.sharding import path_name
from dinov3_jax.train.state import Params, TrainState
from dinov3_jax.weights import architecture, heads, loading, native
from dinov3_jax.weights.places import is_native

log = logging.getLogger(__name__)

SIZES = ("prototypes", "hidden", "bottleneck", "layers")
OPTIONAL = ("local_cls_norm", "attn/qkv_adapter", "attn/proj_adapter")  # only training has them


class Origin(NamedTuple):
  """Weights that a run can start from, of which nothing but their sizes is known yet.

  Attributes:
    path: where they are, as the settings name it.
    folder: the checkpoint or the file that `path` means.
    settings: of their network, as `models.variants.build` takes them.
    heads: those that are there, `dino_head` and `ibot_head`, as the arguments of `DINOHead`.
  """

  path: str
  folder: epath.Path
  settings: dict[str, Any]
  heads: dict[str, dict[str, int]]


def find(path: str) -> Origin:
  """What is known of weights without reading them.

  Args:
    path: as `weights` of `dinov3_jax.load`; what is on the hub is fetched.

  Raises:
    ValueError, OSError: as `dinov3_jax.load`.
  """
  place = loading.locate(None, path)
  settings = loading.settings_of(place)
  if not is_native(place):
    return Origin(path, place, settings, heads.sizes_of(place))
  folder = native.locate(place)
  stored = native.stored_settings(folder)
  sections = {name: stored.get(name.removesuffix("_head")) for name in heads.NAMES}
  sizes = {name: {key: section[key] for key in SIZES} for name, section in sections.items()
           if section}  # other kinds of training have no such heads
  return Origin(path, folder, settings, sizes)


def check(config: ConfigDict, abstract_state: TrainState):
  """Says whether the weights that `init_from` and `gram.init_from` name can start this run.

  Raises:
    ValueError: one line, naming the first settings or parameters that differ; or from `find`.
    OSError: from `find`.
  """
  for key, path in _named(config, abstract_state):
    origin = find(path)
    _check_network(key, origin, config, abstract_state.student["backbone"])
    if key == "init_from" and config.init_heads:
      _check_heads(origin, config)


def start(config: ConfigDict, state: TrainState) -> TrainState:
  """The state of a run that begins with somebody's weights, each shard read onto its device.

  The backbone, and the heads that are there unless `init_heads` is off, become student and teacher;
  other heads stay as they are, and so do low-rank adapters. The backbone becomes the Gram teacher,
  too, unless `gram.init_from` names other weights for that. Moments and step stay those of a fresh
  state.

  Args:
    config: of the run.
    state: a fresh one.

  Raises:
    ValueError, OSError: the weights have changed since `check`, or cannot be read.
  """
  copy = lambda tree: jax.tree.map(jnp.copy, tree)  # or the step could not reuse its memory
  for key, path in _named(config, state):
    origin = find(path)
    backbone = _read_backbone(origin, state.student["backbone"])
    if key == "init_from":
      used = origin.heads if config.init_heads else {}
      teacher = state.teacher | {"backbone": backbone} | _read_heads(origin, used, state.teacher)
      state = state.replace(student=copy(teacher), teacher=teacher)
      log.info("starting from %s: %s", path, _said(used))
    if state.gram_teacher is not None:
      state = state.replace(gram_teacher={"backbone": copy(backbone)})
  return state


def _named(config: ConfigDict, state: TrainState) -> list[tuple[str, str]]:
  """(setting, path) of all weights that a run starts from."""
  named = [("init_from", config.init_from)]
  if state.gram_teacher is not None:
    named.append(("gram.init_from", config.gram.init_from))
  return [(key, path) for key, path in named if path]


def _said(used: dict[str, Any]) -> str:
  """Which heads are used, in words."""
  fresh = [name for name in heads.NAMES if name not in used]
  parts = [f"its backbone{''.join(f', its {name}' for name in used)}"]
  if fresh:
    parts.append(f"{' and '.join(fresh)} {'are' if len(fresh) > 1 else 'is'} fresh")
  return "; ".join(parts)


def _check_network(key: str, origin: Origin, config: ConfigDict, backbone: Params):
  different = differences(origin.settings, config.model.to_dict())
  if not different:
    there, here = _shapes(architecture.abstract(origin.settings)[1]), _shapes(backbone)
    different = [f"{name} is {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
                 for name in here | there if there.get(name) != here.get(name)
                 and not any(f"{part}/" in name for part in OPTIONAL)]
  if different:
    more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
    raise ValueError(
      f"config.{key}={origin.path} is another network than this config's: "
      f"{'; '.join(different[:3])}{more}: take the same model, another config.{key}, or "
      f"configs/adapt.py:{origin.path}, whose network follows the weights")


def _check_heads(origin: Origin, config: ConfigDict):
  for name, sizes in origin.heads.items():
    section = name.removesuffix("_head")
    different = [key for key in SIZES if config[section][key] != sizes[key]]
    if different:
      there = ", ".join(f"{key}={sizes[key]}" for key in different)
      here = " ".join(f"{section}.{key}={sizes[key]}" for key in different)
      raise ValueError(
        f"the {name} of config.init_from={origin.path} has {there}, which is not this config's: "
        f"set {here}, or init_heads=False for fresh heads")


def _shapes(tree: Params) -> dict[str, str]:
  """Each parameter's name and its shape in words."""
  return {path_name(path): str(list(x.shape))
          for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _read_backbone(origin: Origin, fresh: Params) -> Params:
  """The backbone's parameters, laid out as the fresh ones; what training alone has is added."""
  _, params = loading.read(None, origin.folder, jnp.float32, _mesh(fresh), "teacher")
  params = {key: x for key, x in params.items() if key in fresh}
  if "local_cls_norm" in fresh and "local_cls_norm" not in params:
    params["local_cls_norm"] = jax.tree.map(jnp.copy, params.get("cls_norm", params["norm"]))
  flat = {path_name(path): x for path, x in jax.tree_util.tree_flatten_with_path(params)[0]}
  # Adapters stay those of the fresh state, which change nothing yet.
  return jax.tree_util.tree_map_with_path(lambda path, x: flat.get(path_name(path), x), fresh)


def _read_heads(origin: Origin, used: dict[str, Any], fresh: Params) -> Params:
  """The heads' parameters, laid out as the fresh ones."""
  if not used:
    return {}
  wanted = {name: fresh[name] for name in used}
  if not is_native(origin.folder):
    _, read = heads.read(origin.folder, names=used)
    return jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), read, wanted)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)
  return native.read_arrays(origin.folder, {"teacher": abstract})["teacher"]


def _mesh(params: Params) -> Mesh | None:
  """The mesh that parameters lie on; None where they are on one device without any."""
  return getattr(jax.tree.leaves(params)[0].sharding, "mesh", None)
