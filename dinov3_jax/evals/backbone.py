"""A backbone from anybody's weights, together with what its images need."""

import jax
import numpy as np
from flax import nnx

from dinov3_jax.data.preprocess import Preprocess, preprocess
from dinov3_jax.models.variants import variant
from dinov3_jax.weights import loading


def open_model(weights: str, name: str | None = None, size: int | tuple[int, int] | None = None,
               dtype: str | None = None, mesh: jax.sharding.Mesh | None = None
               ) -> tuple[nnx.Module, Preprocess]:
  """A model, and what its images must go through.

  Args:
    weights: as for `dinov3_jax.load`, or "random".
    name: of the model, where the weights do not say.
    size: of the images, one side or (height, width) in pixels; None: what our own trainer trained
      with, 224 for others.
    dtype: "float32" or "bfloat16"; None: bfloat16 on accelerators, float32 on CPUs.
    mesh: as for `dinov3_jax.load`.

  Raises:
    ValueError: a size that is no whole number of patches, and what `dinov3_jax.load` raises.
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
    if loading.is_native(path):
      from dinov3_jax.weights import native  # Orbax is slow to import
      crops = native.stored_settings(native.locate(path))["crops"]
      prepare = Preprocess(tuple(crops["mean"]), tuple(crops["std"]),
                           size or crops["global_sizes"][0])
    else:
      home = path.parent if (path.parent / "preprocessor_config.json").exists() else path
      prepare = preprocess(home, size or 224)
    model = loading.load(name, path, dtype, mesh)
  patch = patch_side(model)
  wrong = [side for side in np.ravel(prepare.size).tolist() if side % patch]
  if wrong:
    near = sorted({max(wrong[0] // patch, 1) * patch, -(-wrong[0] // patch) * patch})
    raise ValueError(f"a size of {wrong[0]} is no whole number of the model's patches of {patch}: "
                     f"take {' or '.join(map(str, near))}")
  return model, prepare


def patch_side(model: nnx.Module) -> int:
  """Of a patch, in pixels; 32 for a ConvNeXt's last map."""
  return model.patch_size or 32
