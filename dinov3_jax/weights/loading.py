"""A ready model from a name and anybody's weights."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from dinov3_jax.models.convnext import ConvNeXt
from dinov3_jax.models.partition import param_sharding
from dinov3_jax.models.variants import VARIANTS, build, differences, variant
from dinov3_jax.models.vit import VisionTransformer
from dinov3_jax.weights import files, huggingface, naming
from dinov3_jax.weights.naming import Convention, Params
from dinov3_jax.weights.streaming import fill

Settings = dict[str, Any]
Weights = str | os.PathLike
HEADS = ("dino_head.", "ibot_head.")


def load(name: str | None, weights: Weights | None = None, dtype: DTypeLike = jnp.float32,
         mesh: Mesh | None = None, *, network: str = "teacher") -> VisionTransformer | ConvNeXt:
  """A model that is ready for use.

  `model(images)`, with images [B, H, W, 3] as `dinov3_jax.preprocess(weights)` makes them, returns
  the normed tokens: `cls` [B, D], `storage` [B, R, D] and `patches` [B, N, D].

  Every parameter is filled and every array of the weights used, or there is an error. Two things
  exist only in training and follow the weights: the norm that some models have for the CLS token of
  local crops is there if the weights have it (files of Hugging Face never do), and biases of keys
  that a model masks are zeros where a file leaves them out.

  Args:
    name: a key of `dinov3_jax.VARIANTS`, or None to let the weights say which model they are.
    weights: where the parameters come from:
      None: a fresh initialisation.
      "lvd1689m" or "sat493m": the published ones of that data, from the Hugging Face hub.
      "owner/name": a repository of the hub.
      a file or a folder of Hugging Face's format (safetensors, in one file or several).
      a `.pth` file of the reference, which takes PyTorch to read; flat, or its trainer's teacher.
      what `dinov3_jax.export` wrote.
      a checkpoint of our own trainer: the run's folder, for the newest, or one checkpoint's.
    dtype: of parameters and computation.
    mesh: with axes `data`, `fsdp` and `tensor`: where the parameters lie, cut up by
      `dinov3_jax.models.partition`. None: all on the first device.
    network: which one of our trainer's checkpoint: "teacher", "student" or "gram_teacher".

  Raises:
    ValueError: an unknown name; weights of another model; or, in one line, every array that is
      missing, of no use, or of another shape.
    FileNotFoundError, PermissionError: the weights are not there, or this account may not have
      them.
    ModuleNotFoundError: a `.pth` file, and no PyTorch.
  """
  settings, params = read(name, weights, dtype, mesh, network)
  graph, _ = _abstract(settings)
  return nnx.merge(graph, params)


def read(name: str | None, weights: Weights | None, dtype: DTypeLike, mesh: Mesh | None,
         network: str) -> tuple[Settings, Params]:
  """What `load` makes a model of: its settings and its parameters; arguments as there."""
  if weights is None:
    return _fresh(variant(name).settings, dtype, mesh)
  path = locate(name, weights)
  try:
    if is_native(path):
      return _from_native(name, path, dtype, mesh, network)
    return _from_files(name, pathlib.Path(path), dtype, mesh)
  except ValueError as error:
    raise ValueError(f"{weights}: {error}") from error


def locate(name: str | None, weights: Weights) -> epath.Path:
  """Where the weights are; those of the hub are fetched first."""
  repo = str(weights)
  if name and repo in variant(name).releases:
    repo = variant(name).releases[repo].repo
    if repo is None:
      raise FileNotFoundError(f"{name}'s weights are not on the Hugging Face hub: ask the authors "
                              "for the .pth file")
  path = epath.Path(weights)
  return epath.Path(huggingface.download(repo)) if (
      not path.exists() and huggingface.is_repo(repo)) else path


def is_native(path: epath.Path) -> bool:
  """Whether our own trainer wrote what is there."""
  return any((path / item).is_dir() for item in ("state", "checkpoints"))


def _abstract(settings: Settings) -> tuple[nnx.GraphDef, Params]:
  """The graph of a network, and its parameters as shapes; no memory is taken."""
  graph, state = nnx.split(nnx.eval_shape(lambda: build(settings, rngs=nnx.Rngs(0))))
  return graph, nnx.to_pure_dict(state)


def _fresh(settings, dtype, mesh) -> tuple[Settings, Params]:
  make = lambda: jax.tree.map(lambda x: x.astype(dtype), nnx.to_pure_dict(
      nnx.state(build(settings, rngs=nnx.Rngs(0)))))
  shardings = mesh and param_sharding(mesh, _abstract(settings)[1])
  return settings, jax.jit(make, out_shardings=shardings)()


def _from_native(name, path, dtype, mesh, network) -> tuple[Settings, Params]:
  from dinov3_jax.weights import native  # Orbax is slow to import
  folder = native.locate(path)
  settings = native.stored_settings(folder)["model"]
  _check_name(name, settings)
  stored = native.stored_arrays(folder).get(network)
  if not stored:
    raise ValueError(f"the checkpoint has no {network}: use teacher or student")
  _, shapes = _abstract(settings)
  describe = lambda tree: {jax.tree_util.keystr(path): leaf.shape for path, leaf
                           in jax.tree_util.tree_leaves_with_path(tree)}
  there, here = describe(stored["backbone"]), describe(shapes)
  wrong = [f"{key} is {there.get(key, 'missing')} there, {here.get(key, 'missing')} here"
           for key in here | there if there.get(key) != here.get(key)]
  if wrong:
    raise ValueError(f"the parameters are not those of the stored settings: {'; '.join(wrong)}")
  shardings = param_sharding(mesh, shapes) if mesh else jax.tree.map(
      lambda _: jnp.zeros(()).sharding, shapes)
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes,
                          shardings)
  params = native.read_arrays(folder, {network: {"backbone": abstract}})
  return settings, params[network]["backbone"]


def _from_files(name, path, dtype, mesh) -> tuple[Settings, Params]:
  arrays = _backbone(files.open_arrays(path))
  hugging = not {"embeddings.cls_token", "layer_norm.weight"}.isdisjoint(arrays)
  convention = "huggingface" if hugging else "official"
  settings = _stored_settings(files.find(path).parent, convention)
  if settings is None:
    settings = variant(name or _identify(arrays, convention)).settings
  _check_name(name, settings)
  settings = _with_norms_of(arrays, settings)
  _, shapes = _abstract(settings)
  wanted = _entries(shapes, convention, settings)
  is_vit = "depths" not in settings
  naming.check(wanted, arrays, naming.contradictions(arrays, settings) if is_vit else ())
  return settings, fill(shapes, wanted, arrays, dtype, mesh and param_sharding(mesh, shapes))


def _backbone(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The backbone's arrays alone, where the file has heads, too."""
  if not any(name.startswith("backbone.") for name in arrays):
    return arrays
  return {name.removeprefix("backbone."): array for name, array in arrays.items()
          if not name.startswith(HEADS)}


def _stored_settings(folder: pathlib.Path, convention: Convention) -> Settings | None:
  path = folder / huggingface.CONFIG
  config = json.loads(path.read_text()) if path.is_file() else {}
  if "dinov3_jax" in config:
    return config["dinov3_jax"]
  return huggingface.settings(config) if config and convention == "huggingface" else None


def _check_name(name: str | None, settings: Settings):
  differing = differences(settings, variant(name).settings) if name else ()
  if differing:
    raise ValueError(f"this is no {name}: {', '.join(differing)}")


def _with_norms_of(arrays: Mapping[str, np.ndarray], settings: Settings) -> Settings:
  own = "local_cls_norm.weight" in arrays
  return settings if "depths" in settings else {**settings, "untie_global_and_local_cls_norm": own}


def _entries(shapes: Params, convention: Convention, settings: Settings) -> list[naming.Entry]:
  return list(naming.entries(shapes, convention, settings.get("mask_k_bias", False)))


def _identify(arrays: Mapping[str, np.ndarray], convention: Convention) -> str:
  """The variant whose arrays have these names and shapes."""
  there = {name: array.shape for name, array in arrays.items()
           if array.size and not naming.BUFFERS.search(name)}
  for name, row in VARIANTS.items():
    settings = _with_norms_of(arrays, row.settings)
    entries = _entries(_abstract(settings)[1], convention, settings)
    if there == {e.name: e.theirs for e in entries if e.name in there or not e.copy_of}:
      return name
  raise ValueError("these weights are those of no published model: say which one they should be, "
                   "or put a config.json beside them")
