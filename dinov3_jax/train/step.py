"""One training step: gradients, update, EMA, Gram refresh."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from dinov3_jax.models import attention, eight_bits, products
from dinov3_jax.models.partition import DATA_AXES, local_spec, several
from dinov3_jax.train.micro_batches import accumulated
from dinov3_jax.train.objective import Objective, make_objective
from dinov3_jax.train.optimizer import Params, is_group, keep_fixed, module_norms
from dinov3_jax.train.schedules import make_schedules
from dinov3_jax.train.sharding import on_shards, param_specs
from dinov3_jax.train.state import (
  TrainState,
  abstract_modules,
  groups_of,
  has_gram_teacher,
  optimizer_of,
)

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def ema(teacher: Params, student: Params, momentum: jax.Array) -> Params:
  """momentum * teacher + (1 - momentum) * student, for every parameter."""
  return jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, teacher, student)


def gram_refresh_due(done: jax.Array, every: int, first: int,
                     max_refreshes: int | None) -> jax.Array:
  """Whether the EMA teacher becomes the Gram teacher after `done` steps (paper, section 4.2).

  It is every `every` steps, from step `first` on, at most `max_refreshes` times; a function of the
  step alone, so that a restart needs no count.
  """
  if not every:
    return jnp.asarray(False)
  before_first = -(-max(first, 1) // every) - 1  # multiples of `every` that came too early
  due = (done >= first) & (done % every == 0)
  return due if max_refreshes is None else due & (done // every - before_first <= max_refreshes)


def make_train_step(config, mesh: Mesh | None = None
                    ) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """The pure step `(state, batch) -> (state, metrics)`; jit it with a donated state.

  A batch with `targets`, of a frozen teacher (see `targets`), makes it a step of distillation; the
  state's `teacher` is the student's EMA all the same.

  On several devices it must know their mesh, or the compiler chooses what to send where.

  Everything random in it follows from `config.seed` and `state.step`. A non-finite loss or gradient
  leaves parameters, moments, EMA and Gram teacher exactly as they were (`metrics["skipped"]` is 1);
  only the step goes on.
  """
  has_gram_teacher(config)  # or its error
  graphs, shapes = abstract_modules(config)
  platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
  dtype = jnp.dtype(config.train.dtype)
  graphs = products.for_training(graphs, shapes, platform, dtype)
  graphs = eight_bits.choose(graphs, shapes, config.train.matmul)
  graphs = attention.choose(graphs, shapes, config.train.attention, platform, dtype)
  gradients = make_gradients(config, graphs, shapes, mesh)
  optimizer, groups = optimizer_of(config, shapes), groups_of(config, shapes)
  freeze = config.optim.freeze_backbone_steps
  schedules = make_schedules(config)
  gram = config.gram
  copy_at = gram.copy_ema_at if gram.start_at is None else gram.start_at
  refresh_first = max(gram.refresh_first, (gram.start_at or 0) + 1)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    values = {name: schedule(state.step) for name, schedule in schedules.items()}
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    if gram.start_at is not None:
      values["gram_started"] = state.step >= gram.start_at
    if state.gram_teacher is not None and copy_at is not None:
      copied = copy_ema_if(state.step == copy_at, state.teacher, state.gram_teacher)
      state = state.replace(gram_teacher=copied)

    teacher = state.teacher
    if "targets" in batch:
      rows = dict(batch["targets"])
      teacher = {"prototypes": rows.pop("prototypes")}
      batch = batch | dict(targets=rows)
    (loss, metrics), grads = gradients(state.student, teacher, state.gram_teacher, batch, values,
                                       key)
    norms = module_norms(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(sum(norms.values()))

    updates, opt_state = optimizer.update(grads, state.opt_state, state.student, step=state.step)
    # Not by a rate of zero: what is fixed must not change by a rounding, nor may its average.
    frozen = state.step < freeze if freeze > 0 else None
    student = keep_fixed(groups, frozen, state.student,
                         optax.apply_updates(state.student, updates))
    teacher = keep_fixed(groups, frozen, state.teacher,
                         ema(state.teacher, student, values["momentum"]))
    gram_teacher = state.gram_teacher
    if gram_teacher is not None:
      due = gram_refresh_due(state.step + 1, gram.refresh_every, refresh_first,
                             gram.max_refreshes)
      gram_teacher = copy_ema_if(due, teacher, gram_teacher)

    new = TrainState(state.step, student, teacher, gram_teacher, opt_state)
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    metrics |= {f"grad_norm/{name}": norm for name, norm in norms.items()}
    metrics |= dict(loss=loss, lr=values["lr"], last_layer_lr=values["last_layer_lr"],
                    weight_decay=values["weight_decay"], teacher_momentum=values["momentum"],
                    teacher_temp=values["teacher_temp"], skipped=1.0 - finite)
    if "backbone_ramp" in values:
      metrics["backbone_ramp"] = values["backbone_ramp"]
    return new.replace(step=state.step + 1), metrics

  return step


def make_gradients(config, graphs: dict, shapes: Params, mesh: Mesh | None) -> Callable:
  """`gradients(student, teacher, gram_teacher, batch, values, key) -> ((loss, metrics), grads)`.

  On several devices every data shard computes for itself, on its part of the batch; with
  `train.micro_batches`, on one part of that after the other.
  """
  parts, groups = config.train.micro_batches, groups_of(config, shapes)
  if mesh is None or mesh.size == 1:
    return accumulated(with_fixed(make_objective(config, graphs), groups), parts)
  layout = param_specs(mesh, shapes)
  objective = make_objective(config, graphs, layout, mesh.shape["tensor"])
  of_parts = accumulated(with_fixed(objective, groups), parts)
  params = jax.tree.map(local_spec, layout)

  def of_shard(student, *args):
    value, grads = of_parts(student, *args)
    return jax.lax.pmean(value, several()), grads

  def gradients(student, teacher, gram_teacher, *args):
    gram = gram_teacher and {"backbone": params["backbone"]}
    # A frozen teacher's prototypes, as many as the student's own, are laid out like those.
    frozen = {"prototypes": {name: params[name]["last_layer"]["kernel"] for name in params
                             if name != "backbone"}}
    taught = frozen if "prototypes" in teacher else params
    specs = (params, taught, gram, P(DATA_AXES), P(), P())
    return on_shards(of_shard, mesh, specs, (P(), params))(student, teacher, gram_teacher, *args)

  return gradients


def with_fixed(objective: Objective, groups: Params) -> Objective:
  """The objective, which spends no backward pass on what is not trained."""
  learning = lambda group, x: x if group.trained else jax.lax.stop_gradient(x)

  def losses(student, *args):
    return objective.losses(jax.tree.map(learning, groups, student, is_leaf=is_group), *args)

  return objective._replace(losses=losses)


def copy_ema_if(condition: jax.Array, teacher: Params, gram_teacher: Params) -> Params:
  """The EMA teacher's backbone where `condition` holds, else the Gram teacher as it is."""
  return jax.lax.cond(condition, lambda: {"backbone": teacher["backbone"]}, lambda: gram_teacher)
