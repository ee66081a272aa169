"""The frozen backbone of a run: found, checked against what it was, and read."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dinov3_jax.data.preprocess import preprocess
from dinov3_jax.models.variants import stride
from dinov3_jax.weights import checksums, loading


@dataclasses.dataclass
class Backbone:
  """A network that nothing changes.

  Attributes:
    settings: of the network, as `models.variants.build` takes them.
    params: in the computation's dtype.
    mean, std: of its images.
    size: of the images that it was trained with, or that its weights state, pixels.
    digest: of every bit of its float32 parameters.
  """

  settings: dict[str, Any]
  params: Any
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  size: int | tuple[int, int]
  digest: str

  @property
  def patch(self) -> int:
    """Side of a patch, in pixels."""
    return stride(self.settings)


# Of a ViT, where its settings do not say; see `VisionTransformer`.
DEFAULTS = dict(patch_size=16, in_channels=3, ffn="mlp", ffn_ratio=4.0, ffn_align=8,
                storage_tokens=0)


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of a backbone with all that is asked for beside building it."""
  return dict(settings) if "depths" in settings else DEFAULTS | dict(settings)


def read(weights: str, name: str = "", mesh: Mesh | None = None, dtype: Any = jnp.float32,
         expected: Sequence[str] = ()) -> Backbone:
  """A backbone, each part of it on its device.

  Args:
    weights: anything that `dinov3_jax.load` takes, or "random" for a fresh network.
    name: of the model, where the weights do not say; "": they do.
    mesh: of the devices; None: the first one alone.
    dtype: of the computation; what is frozen need not be kept in another.
    expected: digests that it must have, such as those that checkpoints name; "": any.

  Raises:
    ValueError: it is not the one that is expected, or what `dinov3_jax.load` raises.
    OSError: it is not there, or cannot be read.
  """
  if weights == "random":
    if not name:
      raise ValueError("random weights need a name: set backbone.model")
    weights, path = None, ""
  else:
    path = loading.locate(name or None, weights)
  settings, params = loading.read(name or None, path or None, jnp.float32, mesh, "teacher")
  if settings.get("in_channels", 3) != 3:
    raise ValueError(f"{weights} is a model of other than RGB images")
  digest = checksums.of_json(checksums.of_arrays(params)[0])
  for wanted in filter(None, expected):
    if digest != wanted:
      raise ValueError(
        f"the backbone {weights} is not the one that the text was aligned with: its digest is "
        f"{digest}, not {wanted}; name that one in backbone.weights")
  if jnp.dtype(dtype) != jnp.float32:
    cast = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree), donate_argnums=0,
                   out_shardings=jax.tree.map(lambda x: x.sharding, params))
    params = cast(params)
  prepare = preprocess(path)
  return Backbone(complete(settings), params, tuple(prepare.mean), tuple(prepare.std),
                  prepare.size, digest)
