"""A backbone from anybody's weights, together with what its images need."""

import os
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType

from dinov3_jax.data.preprocess import Preprocess, preprocess
from dinov3_jax.models.variants import channels, variant
from dinov3_jax.weights import loading

if TYPE_CHECKING:
  from dinov3_jax.text.model import DinoText


def open_model(weights: str | os.PathLike, name: str | None = None,
               size: int | tuple[int, int] | None = None, dtype: str | None = None,
               mesh: jax.sharding.Mesh | None = None) -> tuple[nnx.Module, Preprocess]:
  """A model, and what its images must go through.

  Args:
    weights: as for `dinov3_jax.load`, or "random".
    name: of the model, where the weights do not say.
    size: of the images, one side or (height, width) in pixels; None: what the weights were trained
      with, if they say so, else 224.
    dtype: "float32" or "bfloat16"; None: bfloat16 on accelerators, float32 on CPUs.
    mesh: as for `dinov3_jax.load`.

  Raises:
    ValueError: a size that is no whole number of patches, a model of other than RGB images, and
      what `dinov3_jax.load` raises.
  """
  dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
  if name is not None:
    variant(name)
  if weights == "random":
    if name is None:
      raise ValueError("random weights need a --model")
    model, prepare = loading.load(name, None, dtype, mesh), preprocess("", size or 224)
  else:
    path = loading.locate(name, weights)
    prepare = preprocess(path, size)
    model = loading.load(name, path, dtype, mesh)
    if channels(model) != 3:
      raise ValueError(f"{weights} is a model of images with {channels(model)} channels, not of "
                       "RGB: call `dinov3_jax.load` and prepare its images yourself")
  patch = patch_side(model)
  wrong = [side for side in np.ravel(prepare.size).tolist() if side % patch]
  if wrong:
    near = sorted({max(wrong[0] // patch, 1) * patch, -(-wrong[0] // patch) * patch})
    raise ValueError(f"a size of {wrong[0]} is no whole number of the model's patches of {patch}: "
                     f"take {' or '.join(map(str, near))}")
  return model, prepare


def open_on_all_devices(weights: str | os.PathLike, name: str | None = None,
                        size: int | tuple[int, int] | None = None, dtype: str | None = None,
                        text: bool = False) -> "tuple[nnx.Module | DinoText, Preprocess]":
  """`open_model`, or with `text` a dino.txt, with a copy on every device of this process."""
  devices = jax.local_devices()
  mesh = None if len(devices) == 1 else jax.make_mesh(
      (len(devices), 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=devices)
  if text:
    from dinov3_jax.text.loading import load_text  # not needed by those who evaluate images alone
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    model = load_text(weights, dtype=dtype, mesh=mesh)
    return model, model.preprocess
  return open_model(weights, name, size, dtype, mesh)


def patch_side(model: nnx.Module) -> int:
  """Of a patch, in pixels; 32 for a ConvNeXt's last map."""
  return model.patch_size or 32
