"""The step of dino.txt for devices that are not there; see `train.ahead`."""

import collections
import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov3_jax.costs.collectives import sent
from dinov3_jax.models.partition import DATA_AXES, axes_of, param_sharding
from dinov3_jax.models.variants import variant
from dinov3_jax.text.backbone import complete
from dinov3_jax.text.costs import step_flops
from dinov3_jax.text.settings import check_settings
from dinov3_jax.text.state import init_state
from dinov3_jax.text.step import make_features
from dinov3_jax.text.training import jit_step
from dinov3_jax.train import sharding
from dinov3_jax.train.ahead import Part
from dinov3_jax.weights import architecture


def text_parts(config: ConfigDict, mesh: Mesh) -> list[Part]:
  """The one program of a step, of a backbone that `backbone.model` names.

  Raises:
    ValueError: settings that do not fit together, or these devices; no such model.
  """
  check_settings(config)
  if not config.backbone.model:
    raise ValueError("a step of text needs to know its backbone's network: set backbone.model, "
                     "such as --config.backbone.model=vitl16")
  settings = complete(variant(config.backbone.model).settings)
  pairs, side, context = config.train.batch_size, config.images.size, config.text.context
  sharding.check_parts(pairs, sharding.data_shards(mesh), config.train.micro_batches)
  shapes = architecture.abstract(settings)[1]
  frozen = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, config.train.dtype, sharding=s),
                        shapes, param_sharding(mesh, shapes))
  rows = sharding.batch_sharding(mesh)
  images = jax.ShapeDtypeStruct((pairs, side, side, 3), np.uint8, sharding=rows)
  batch = dict(tokens=jax.ShapeDtypeStruct((pairs, context), np.int32, sharding=rows))
  if config.features.views:
    seen = jax.eval_shape(make_features(config, settings), frozen, images)
    batch["features"] = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), seen)
  else:
    batch |= dict(images=images, backbone=frozen)
  state = sharding.abstract_state(mesh, functools.partial(init_state, config, settings))
  step = jit_step(config, settings, mesh, state)
  return [Part("", functools.partial(step.lower, state, batch), (state, frozen), (),
               step_flops(config, settings, sharding.data_shards(mesh)),
               least_bytes(config, state.student, batch.get("backbone"), mesh))]


def least_bytes(config: ConfigDict, student: Any, frozen: Any, mesh: Mesh) -> dict[str, float]:
  """What a step must send from each device, in bytes by kind.

  Parameters cut over `fsdp` are gathered for the forward pass, blocks that are rematerialised once
  more, and their gradients scattered; other gradients are summed in float32. With micro-batches all
  of that is done for each, after a forward pass of its own. The contrastive loss gathers the
  features of images and of texts once, and two numbers a pair.

  Args:
    config: of the run.
    student, frozen: the trained parameters and those of the backbone, as shapes with shardings;
      None for `frozen` where its features are cached.
    mesh: of the devices, `tensor` uncut.
  """
  width, sizes = np.dtype(config.train.dtype).itemsize, mesh.shape
  shards = math.prod(sizes[axis] for axis in DATA_AXES)
  least, parts = collections.Counter(), config.train.micro_batches
  for path, x in jax.tree_util.tree_leaves_with_path(student):
    cut = {axis for entry in x.sharding.spec for axis in axes_of(entry)}
    held = x.size / math.prod(sizes[axis] for axis in cut)
    if "fsdp" in cut:
      again = "blocks" in [key.key for key in path] and config.train.remat != "none"
      passes = parts * (1 + again + (parts > 1))
      least["all-gather"] += passes * sent("all-gather", width * held, sizes["fsdp"])
      least["reduce-scatter"] += parts * sent("reduce-scatter", 4 * held * sizes["fsdp"],
                                              sizes["fsdp"])
      least["all-reduce"] += parts * sent("all-reduce", 4 * held, sizes["data"])
    else:
      least["all-reduce"] += parts * sent("all-reduce", 4 * held, shards)
  for x in jax.tree.leaves(frozen):
    if "fsdp" in {axis for entry in x.sharding.spec for axis in axes_of(entry)}:
      least["all-gather"] += sent("all-gather", width * x.size / sizes["fsdp"], sizes["fsdp"])
  of_device = config.train.batch_size / shards
  least["all-gather"] += 2 * sent("all-gather", of_device * (width * config.embedding + 4), shards)
  return {kind: size for kind, size in least.items() if size}
