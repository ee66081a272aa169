"""Images and captions in the space that they share, for use and for evaluations."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dinov3_jax.models.partition import DATA_AXES, local_spec
from dinov3_jax.text.networks import abstract_modules
from dinov3_jax.text.objective import make_encoders, unit
from dinov3_jax.text.step import make_features
from dinov3_jax.train.sharding import on_shards, param_specs


def make_encode(config, backbone: Mapping[str, Any], mesh: Mesh | None = None
                ) -> tuple[Callable, Callable]:
  """`encode_images(backbone_params, params, images)` and `encode_texts(params, ids)`, jitted.

  Both return `global` [B, E] and `patches`, [B, N, E/2] of images and [B, E/2] of texts, float32
  and of unit length. A text's `patches` is the half of its feature that stands beside an image's
  mean patch, so that its product with an image's patches says where the text is.

  Args:
    config: of the run.
    backbone: settings of the frozen backbone.
    mesh: of the devices that the parameters lie on. Its data shards share the images and the texts,
      whose number they must divide.
  """
  graphs, shapes = abstract_modules(config, backbone)
  layout = param_specs(mesh, shapes) if mesh is not None and mesh.size > 1 else None
  of_images, of_texts = make_encoders(graphs, jnp.dtype(config.train.dtype), layout)
  features = make_features(config, backbone, mesh)

  def seen(params, tokens):
    result = of_images(params, tokens)
    return {"global": unit(result["image"]), "patches": unit(result["patches"])}

  def told(params, ids):
    feature = of_texts(params, ids)
    return {"global": unit(feature), "patches": unit(feature[:, feature.shape[1] // 2:])}

  if layout is not None:
    specs = jax.tree.map(local_spec, layout), P(DATA_AXES)
    seen, told = (on_shards(f, mesh, specs, P(DATA_AXES)) for f in (seen, told))
  return jax.jit(lambda frozen, params, images: seen(params, features(frozen, images))), jax.jit(
    told)
