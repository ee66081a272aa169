"""One training step of dino.txt: what the frozen backbone sees, gradients, update."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dinov3_jax.models.partition import DATA_AXES, local_spec, several
from dinov3_jax.text.micro_batches import accumulated
from dinov3_jax.text.networks import abstract_modules
from dinov3_jax.text.objective import make_halves, make_objective
from dinov3_jax.text.state import TextState, make_optimizer, make_schedules
from dinov3_jax.train.objective import forward, normalise
from dinov3_jax.train.optimizer import module_norms
from dinov3_jax.train.sharding import on_shards, param_specs
from dinov3_jax.weights import architecture

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


def make_features(config, backbone: Mapping[str, Any], mesh: Mesh | None = None) -> Callable:
  """`features(params, images)`, pure: the normed tokens of the frozen backbone.

  Args:
    config: of the run, for the images' mean and deviation and the computation's dtype.
    backbone: settings of the backbone.
    mesh: of the devices.

  Returns:
    A function of the backbone's parameters and of images [B, H, W, 3], uint8, or float and
    normalised. Its result has `cls` [B, D], `storage` [B, R, D] and `patches` [B, N, D].
  """
  graph, shapes = architecture.abstract(backbone)
  layout = param_specs(mesh, shapes) if mesh is not None and mesh.size > 1 else None
  dtype = jnp.dtype(config.train.dtype)

  def features(params, images):
    images = normalise(images[:, None], config.images.mean, config.images.std, dtype)
    return forward(graph, params, layout, dtype, images)[0]

  if layout is None:
    return features
  return on_shards(features, mesh, (jax.tree.map(local_spec, layout), P(DATA_AXES)), P(DATA_AXES))


def make_gradients(config, backbone: Mapping[str, Any], mesh: Mesh | None) -> Callable:
  """`gradients(student, batch, key) -> ((loss, metrics), grads)`.

  On several devices every data shard computes for itself, on its part of the batch; what they
  gather are the features that the contrastive loss compares. With `train.micro_batches` above 1 it
  goes through its part in that many parts, see `micro_batches`.
  """
  graphs, shapes = abstract_modules(config, backbone)

  def make(layout):
    if config.train.micro_batches > 1:
      return accumulated(*make_halves(config, graphs, layout), config.gram.weight,
                         config.train.micro_batches)
    return jax.value_and_grad(make_objective(config, graphs, layout), has_aux=True)

  if mesh is None or mesh.size == 1:
    return make(None)
  layout = param_specs(mesh, shapes)
  of_part = make(layout)
  params = jax.tree.map(local_spec, layout)

  def of_shard(student, batch, key):
    value, grads = of_part(student, batch, key)
    return jax.lax.pmean(value, several()), grads

  return on_shards(of_shard, mesh, (params, P(DATA_AXES), P()), (P(), params))


def make_train_step(config, backbone: Mapping[str, Any], mesh: Mesh | None = None
                    ) -> Callable[[TextState, Batch], tuple[TextState, Metrics]]:
  """The pure step `(state, batch) -> (state, metrics)`; jit it with a donated state.

  Args:
    config: of the run.
    backbone: settings of the frozen backbone.
    mesh: of the devices.

  Returns:
    A function of the state and of a batch with `tokens`, and either the backbone's `features`, see
    `objective.make_objective`, or `images` and its parameters `backbone`. Everything random in it
    follows from `config.seed` and `state.step`. A non-finite loss or gradient leaves parameters and
    moments exactly as they were (`metrics["skipped"]` is 1); only the step goes on.
  """
  _, shapes = abstract_modules(config, backbone)
  gradients = make_gradients(config, backbone, mesh)
  features = make_features(config, backbone, mesh)
  optimizer, schedules = make_optimizer(config, shapes), make_schedules(config)
  highest = math.log(config.logit_scale.highest)

  def step(state: TextState, batch: Batch) -> tuple[TextState, Metrics]:
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    seen = batch["features"] if "features" in batch else features(
      batch["backbone"], batch["images"])
    pairs = dict(tokens=batch["tokens"], features=seen)
    (loss, metrics), grads = gradients(state.student, pairs, key)
    norms = module_norms(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(sum(norms.values()))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.student, step=state.step)
    student = optax.apply_updates(state.student, updates)
    student["logit_scale"] = jnp.clip(student["logit_scale"], 0, highest)
    new = TextState(state.step, student, opt_state)
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    metrics |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    metrics |= {name: schedule(state.step) for name, schedule in schedules.items()}
    return new.replace(step=state.step + 1), metrics | dict(loss=loss, skipped=1.0 - finite)

  return step
