"""The trained networks of dino.txt by the settings of a run, and their official names."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3_jax.models.variants import width
from dinov3_jax.text.tower import TextHead, TextTower
from dinov3_jax.text.vision_head import VisionHead

Params = dict[str, Any]

NETWORKS = ("vision_head", "text_tower", "text_head")
HEAD_WIDTH = 64  # of the vision head's attention, where a backbone has no heads of its own


def make_modules(config, backbone: Mapping[str, Any], rngs: nnx.Rngs) -> dict[str, nnx.Module]:
  """The networks that are trained, freshly initialised.

  Args:
    config: with the sections `vision_head` and `text` and the number `embedding`.
    backbone: settings of the frozen backbone, which decides the vision head's width and heads.
    rngs: the randomness.
  """
  features = width(backbone)
  heads = backbone["num_heads"] if "num_heads" in backbone else max(features // HEAD_WIDTH, 1)
  return {
    "vision_head": VisionHead(width=features, embedding=config.embedding, num_heads=heads,
                              **config.vision_head.to_dict(), rngs=rngs),
    "text_tower": TextTower(**config.text.to_dict(), rngs=rngs),
    "text_head": TextHead(config.text.width, config.embedding, rngs=rngs)}


def abstract_modules(config, backbone: Mapping[str, Any]
                     ) -> tuple[dict[str, nnx.GraphDef], Params]:
  """The graphs of the networks, and all trained parameters as shapes; no memory is taken.

  The parameters are those of `NETWORKS` and `logit_scale` [1], the logarithm of the factor of the
  similarities.
  """
  modules = nnx.eval_shape(lambda: make_modules(config, backbone, nnx.Rngs(0)))
  graphs, params = {}, {}
  for name, module in modules.items():
    graphs[name], state = nnx.split(module)
    params[name] = nnx.to_pure_dict(state)
  return graphs, params | {"logit_scale": jax.ShapeDtypeStruct((1,), jnp.float32)}


def init_params(config, backbone: Mapping[str, Any], key: jax.Array) -> Params:
  """Fresh float32 parameters of all that is trained; pure and jittable."""
  modules = make_modules(config, backbone, nnx.Rngs(key))
  params = {name: nnx.to_pure_dict(nnx.state(module, nnx.Param))
            for name, module in modules.items()}
  return params | {"logit_scale": jnp.full((1,), math.log(config.logit_scale.start))}


def official_tree(params: Params) -> Params:
  """Our parameters, arrays or shapes, in the tree whose keys lead to the official names."""
  return {"visual_model": {"head": params["vision_head"]},
          "text_model": {"backbone": params["text_tower"], "head": params["text_head"]},
          "logit_scale": params["logit_scale"]}


def from_official_tree(tree: Params) -> Params:
  """The inverse of `official_tree`."""
  return {"vision_head": tree["visual_model"]["head"],
          "text_tower": tree["text_model"]["backbone"], "text_head": tree["text_model"]["head"],
          "logit_scale": tree["logit_scale"]}
