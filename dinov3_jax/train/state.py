"""What a training run carries from step to step, and how it is born."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from dinov3_jax.models.head import DINOHead
from dinov3_jax.models.variants import build, width
from dinov3_jax.train.optimizer import make_optimizer, param_groups
from dinov3_jax.train.schedules import make_schedules

Params = dict[str, Any]


@flax.struct.dataclass
class TrainState:
  """All arrays of a run; parameters are float32.

  Attributes:
    step: steps taken, int32 scalar.
    student, teacher: {"backbone", "dino_head", "ibot_head"}.
    gram_teacher: {"backbone"}, or None without a Gram teacher of its own.
    opt_state: of the optax chain.
  """

  step: jax.Array
  student: Params
  teacher: Params
  gram_teacher: Params | None
  opt_state: optax.OptState


def make_modules(config, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
  """The student's networks, freshly initialised."""
  head = lambda c: DINOHead(width(config.model), prototypes=c.prototypes, hidden=c.hidden,
                            bottleneck=c.bottleneck, layers=c.layers, rngs=rngs)
  return {"backbone": build(config.model.to_dict(), rngs=rngs),
          "dino_head": head(config.dino), "ibot_head": head(config.ibot)}


def abstract_modules(config) -> tuple[dict[str, nnx.GraphDef], Params]:
  """The graphs of the networks, and their parameters as shapes; no memory is taken.

  `nnx.merge(graphs[name], params[name])` gives back a module.
  """
  modules = nnx.eval_shape(lambda: make_modules(config, nnx.Rngs(0)))
  graphs, params = {}, {}
  for name, module in modules.items():
    graphs[name], state = nnx.split(module)
    params[name] = nnx.to_pure_dict(state)
  return graphs, params


def optimizer_of(config, params: Params) -> optax.GradientTransformationExtraArgs:
  """The run's optimizer for parameters of these shapes."""
  optim = config.optim
  return make_optimizer(groups_of(config, params), make_schedules(config), b1=optim.b1,
                        b2=optim.b2, clip=optim.clip, freeze=max(optim.freeze_backbone_steps, 0))


def groups_of(config, params: Params) -> Params:
  """How the run's optimizer treats each of these parameters; see `ParamGroup`."""
  optim = config.optim
  trained = "adapters" if config.model.get("adapter_rank") else "all"
  return param_groups(params, layerwise_decay=optim.layerwise_decay,
                      patch_embed_lr_mult=optim.patch_embed_lr_mult,
                      dino_head_wd_mult=optim.dino_head_wd_mult,
                      backbone_lr_mult=optim.backbone_lr_mult,
                      trained="none" if optim.freeze_backbone_steps < 0 else trained)


def has_gram_teacher(config) -> bool:
  """Whether the run keeps a Gram teacher of its own."""
  if config.gram.teacher not in ("none", "ema", "own"):
    raise ValueError(f"gram.teacher must be none, ema or own, not {config.gram.teacher!r}")
  return config.gram.teacher == "own"


def state_from_params(config, student: Params, teacher: Params,
                      gram_teacher: Params | None = None) -> TrainState:
  """The state before the first step, from given parameters."""
  return TrainState(step=jnp.zeros((), jnp.int32), student=student, teacher=teacher,
                    gram_teacher=gram_teacher,
                    opt_state=optimizer_of(config, student).init(student))


def init_state(config) -> TrainState:
  """A fresh state: the teacher, and a Gram teacher where there is one, start as the student.

  Pure and jittable: under `jax.jit` with `out_shardings` every parameter is born on its own shard.
  """
  modules = make_modules(config, nnx.Rngs(jax.random.key(config.seed)))
  student = {name: nnx.to_pure_dict(nnx.state(m, nnx.Param)) for name, m in modules.items()}
  copy = lambda tree: jax.tree.map(jnp.copy, tree)
  gram = {"backbone": copy(student["backbone"])} if has_gram_teacher(config) else None
  return state_from_params(config, student, copy(student), gram)
