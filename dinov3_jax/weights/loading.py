"""A ready model from a name and anybody's weights."""

import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from dinov3_jax.models import adapters
from dinov3_jax.models.convnext import ConvNeXt
from dinov3_jax.models.partition import param_sharding
from dinov3_jax.models.variants import build, differences, variant
from dinov3_jax.models.vit import VisionTransformer
from dinov3_jax.weights import architecture, files, huggingface, naming, stored_settings
from dinov3_jax.weights.naming import Params
from dinov3_jax.weights.places import expand, is_native
from dinov3_jax.weights.streaming import fill

Settings = dict[str, Any]
Weights = str | os.PathLike


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
      a file or a folder of Hugging Face's format (in one file or several).
      a `.safetensors` file, or a `.pth`, `.pt`, `.bin` or `.ckpt` file (read by PyTorch): of the
        reference, flat or its trainer's teacher, or of others with its names or Hugging Face's.
        `unwrapping.unwrap` says what may be wrapped around the arrays, `architecture.identify` what
        is assumed of models that are not in the table and have no `config.json`.
      what `dinov3_jax.export` wrote.
      a checkpoint of our own trainer: the run's folder, for the newest, or one checkpoint's. Its
        low-rank adapters, if it has any, are folded into the weights that they adapt.
    dtype: of parameters and computation.
    mesh: with axes `data`, `fsdp` and `tensor`: where the parameters lie, cut up by
      `dinov3_jax.models.partition`. None: all on the first device.
    network: which one of our trainer's checkpoint: "teacher", "student" or "gram_teacher"; of
      another file that has both, "teacher" or "student".

  Raises:
    ValueError: an unknown name; weights of another model; or, in one line, every array that is
      missing, of no use, or of another shape.
    FileNotFoundError, PermissionError: the weights are not there, or this account may not have
      them.
    ModuleNotFoundError: a `.pth` file, and no PyTorch.
  """
  settings, params = read(name, weights, dtype, mesh, network)
  graph, _ = architecture.abstract(settings)
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
    return _from_files(name, pathlib.Path(path), dtype, mesh, network)
  except ValueError as error:
    message = " ".join(str(error).split("\n"))
    named = os.fspath(weights) in message or str(path) in message
    raise ValueError(message if named else f"{weights}: {message}") from error


def locate(name: str | None, weights: Weights) -> epath.Path:
  """Where the weights are; those of the hub are fetched first, and `~` is the home directory."""
  repo = os.fspath(weights)
  if name and repo in variant(name).releases:
    repo = variant(name).releases[repo].repo
    if repo is None:
      raise FileNotFoundError(f"{name}'s weights are not on the Hugging Face hub: ask the authors "
                              "for the .pth file")
  path = expand(weights)
  return epath.Path(huggingface.download(repo)) if (
      not path.exists() and huggingface.is_repo(repo)) else path


def _fresh(settings, dtype, mesh) -> tuple[Settings, Params]:
  make = lambda: jax.tree.map(lambda x: x.astype(dtype), nnx.to_pure_dict(
      nnx.state(build(settings, rngs=nnx.Rngs(0)))))
  shardings = mesh and param_sharding(mesh, architecture.abstract(settings)[1])
  return settings, jax.jit(make, out_shardings=shardings)()


def _from_native(name, path, dtype, mesh, network) -> tuple[Settings, Params]:
  from dinov3_jax.weights import native  # Orbax is slow to import
  folder = native.locate(path)
  config = native.stored_settings(folder)
  native.check_backbone(config)
  settings = config["model"]
  _check_name(name, settings)
  stored = native.stored_arrays(folder).get(network)
  if not stored:
    raise ValueError(f"the checkpoint has no {network}: use teacher or student")
  _, shapes = architecture.abstract(settings)
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
  return folded(settings), adapters.fold(params[network]["backbone"])


def folded(settings: Settings) -> Settings:
  """The settings of a network whose low-rank adapters, if it has any, are folded into it."""
  return {key: value for key, value in settings.items() if key != "adapter_rank"}


def settings_of(path: epath.Path, network: str = "teacher") -> Settings:
  """The settings of the model that `read` makes of weights, which are not read; `path` is from
  `locate`."""
  if is_native(path):
    from dinov3_jax.weights import native  # Orbax is slow to import
    config = native.stored_settings(native.locate(path))
    native.check_backbone(config)
    return folded(config["model"])
  return _opened(None, pathlib.Path(path), network)[2]


def _opened(name, path, network) -> tuple[dict, naming.Convention, Settings]:
  """The arrays, not read yet, whose names they have, and the settings of their model."""
  arrays = files.open_arrays(path, network)
  convention = architecture.convention_of(arrays)
  settings = stored_settings.read(files.find(path).parent, convention, arrays)
  if settings is None:
    settings = variant(name).settings if name else architecture.identify(arrays, convention)
  _check_name(name, settings)
  return arrays, convention, architecture.with_norms_of(arrays, settings)


def _from_files(name, path, dtype, mesh, network) -> tuple[Settings, Params]:
  arrays, convention, settings = _opened(name, path, network)
  _, shapes = architecture.abstract(settings)
  wanted = architecture.entries_of(shapes, convention, settings)
  is_vit = "depths" not in settings
  naming.check(wanted, arrays, naming.contradictions(arrays, settings) if is_vit else ())
  return settings, fill(shapes, wanted, arrays, dtype, mesh and param_sharding(mesh, shapes))


def _check_name(name: str | None, settings: Settings):
  differing = differences(settings, variant(name).settings) if name else ()
  if differing:
    raise ValueError(f"this is no {name}: {', '.join(differing)}")
