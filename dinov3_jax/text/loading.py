"""A ready dino.txt from a run or from a file of weights, and the way back into a file."""

import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from dinov3_jax.models.partition import param_sharding
from dinov3_jax.text import backbone as backbones
from dinov3_jax.text import files
from dinov3_jax.text.model import DinoText
from dinov3_jax.text.networks import Params, abstract_modules
from dinov3_jax.weights.exporting import checked_out, require_torch
from dinov3_jax.weights.places import expand, is_native

Weights = str | os.PathLike


def load_text(weights: Weights, backbone: Weights | None = None, dtype: DTypeLike = jnp.float32,
              mesh: Mesh | None = None, *, model: str | None = None) -> DinoText:
  """A dino.txt that is ready for use.

  Args:
    weights: the folder of a run that has aligned text, or one of its checkpoints; or a file or
      folder with vision head and text tower under their official names, such as the released
      `dinov3_vitl16_dinotxt_vision_head_and_text_encoder` or what `dinov3_jax.export` wrote.
    backbone: the frozen backbone, as for `dinov3_jax.load`; None: the one that the weights name,
      for the released file the ViT-L/16 of LVD-1689M.
    dtype: of parameters and computation.
    mesh: where the parameters lie, as for `dinov3_jax.load`.
    model: name of the backbone, where neither it nor the weights say.

  Raises:
    ValueError: what holds no dino.txt, another backbone than the weights were trained with, or in
      one line every array that is missing, of no use, or of another shape.
    FileNotFoundError: the weights, or the backbone, are not there.
    ModuleNotFoundError: a `.pth` file, and no PyTorch.
  """
  path = expand(weights)
  arrays = None
  if is_native(path):
    config = _stored(path)
  else:
    arrays = files.open_arrays(path)
    config = files.settings_of(path, arrays)
  named = config.backbone
  frozen = backbones.read(
    os.fspath(backbone) if backbone is not None else named.weights,
    model or ("" if backbone is not None else named.model), mesh, dtype, [named.digest])
  config = ConfigDict(dict(
    embedding=config.embedding, vision_head=config.vision_head.to_dict(),
    text=config.text.to_dict(), backbone=named.to_dict(),
    images=dict(size=config.images.size, mean=frozen.mean, std=frozen.std),
    train=dict(dtype=jnp.dtype(dtype).name)))
  shapes = abstract_modules(config, frozen.settings)[1]
  layout = param_sharding(mesh, shapes) if mesh is not None else jax.tree.map(
    lambda _: jnp.zeros(()).sharding, shapes)
  if arrays is None:
    params = _from_run(path, shapes, layout)
  else:
    params = files.params_of(config, frozen.settings, arrays, path)
  place = lambda x, sharding: jax.device_put(jnp.asarray(x, dtype), sharding)
  return DinoText(config, frozen, jax.tree.map(place, params, layout), mesh)


def is_text_run(path: Weights) -> bool:
  """Whether this is a run that has aligned text with a backbone."""
  path = expand(path)
  if not is_native(path):
    return False
  from dinov3_jax.weights import native  # Orbax is slow to import
  return "text" in native.stored_settings(native.locate(path))


def export_text(run: Weights, format: str, out: Weights) -> list:
  """Writes what a run has trained under the official names; returns the files.

  Args:
    run: its folder, or one of its checkpoints.
    format: "official", a .pth file as the released one, or "safetensors".
    out: a new or empty folder.

  Raises:
    ValueError: another format, a run of another kind, or an `out` that cannot be.
    ModuleNotFoundError: "official", and no PyTorch.
  """
  if format not in ("official", "safetensors"):
    raise ValueError(f"dino.txt can be written as official or safetensors, not as {format}")
  if format == "official":
    require_torch()
  out, path = checked_out(out), expand(run)
  config = _stored(path)
  if config.get("backbone") is None or not is_native(path):
    raise ValueError(f"{run} is no run that has aligned text")
  from dinov3_jax.weights import native
  stored = native.stored_arrays(native.locate(path))["student"]
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored)
  params = _from_run(path, shapes, jax.tree.map(lambda _: jnp.zeros(()).sharding, shapes))
  out.mkdir(parents=True, exist_ok=True)
  return files.write(out, config, params, format)


def _stored(path) -> ConfigDict:
  """The settings of a run of text."""
  from dinov3_jax.weights import native
  config = ConfigDict(native.stored_settings(native.locate(path)))
  if "text" not in config:
    raise ValueError(f"{path} is a run without text: take dinov3_jax.load for it")
  return config


def _from_run(path, shapes: Params, layout: Params) -> Params:
  from dinov3_jax.weights import native
  abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes,
                          layout)
  return native.read_arrays(native.locate(path), {"student": abstract})["student"]
