"""AdamW with the learning rate and weight decay that each parameter should see."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinov3_jax.models.adapters import is_adapter
from dinov3_jax.train.schedules import Schedule

Params = dict[str, Any]

STEM = ("patch_embed", "mask_token", "cls_token", "storage_tokens")


class ParamGroup(NamedTuple):
  """How the optimizer treats one parameter.

  Attributes:
    lr: multiplies the learning rate; for stacked blocks one number a block, shaped to broadcast.
    weight_decay: multiplies the weight decay.
    last_layer: follows `last_layer_lr` in place of `lr`.
    backbone: is of the backbone, whose rate and decay `backbone_ramp` multiplies.
    trained: whether it ever changes.
  """

  lr: float | np.ndarray
  weight_decay: float
  last_layer: bool
  backbone: bool = False
  trained: bool = True


def param_groups(params: Params, *, layerwise_decay: float, patch_embed_lr_mult: float,
                 dino_head_wd_mult: float, backbone_lr_mult: float = 1.0,
                 trained: str = "all") -> Params:
  """The `ParamGroup` of every parameter (a tree like `params`).

  Block i of L learns at `layerwise_decay ** (L - i)`, the tokens and the patch embedding at
  `layerwise_decay ** (L + 1)`, the latter times `patch_embed_lr_mult`; norms after the blocks and
  the heads at 1. Biases, norms and LayerScale are not decayed; tokens are, as in the reference.
  A ConvNeXt learns at one rate everywhere, whatever the settings say, and the norms between its
  stages are decayed; this, too, is the reference's. The whole backbone learns `backbone_lr_mult`
  times as fast. Beside the heads are `trained`: "all" of the backbone, its "adapters", or "none".
  """

  def group(path, param):
    names = [key.key for key in path]
    module, first = names[0], names[1]
    lr = 1.0
    if module == "backbone" and first in STEM:
      lr = layerwise_decay ** (depth + 1) * (patch_embed_lr_mult if first == "patch_embed" else 1)
    elif module == "backbone" and first == "blocks":
      lr = layerwise_decay ** np.arange(depth, 0, -1, dtype=np.float32)
      lr = lr.reshape(-1, *[1] * (param.ndim - 1))
    of_backbone = module == "backbone"
    if of_backbone:
      lr = lr * backbone_lr_mult
    learns = not of_backbone or trained == "all" or (
      trained == "adapters" and any(map(is_adapter, names)))
    is_norm = any("norm" in name for name in names) and first != "downsample"
    decayed = names[-1] not in ("bias", "gamma") and not is_norm
    mult = dino_head_wd_mult if module == "dino_head" else 1.0
    return ParamGroup(lr, mult if decayed else 0.0, "last_layer" in names, of_backbone, learns)

  blocks = jax.tree.leaves(params["backbone"].get("blocks"))
  depth = len(blocks[0]) if blocks else 0
  return jax.tree_util.tree_map_with_path(group, params)


def module_norms(grads: Params) -> dict[str, jax.Array]:
  """The float32 gradient norm of backbone, dino_head and ibot_head."""
  return {name: optax.tree.norm(grad) for name, grad in grads.items()}


def clip_by_module_norm(max_norm: float) -> optax.GradientTransformation:
  """Scales each sub-module's gradient by min(1, max_norm / (norm + 1e-6)), with its own norm."""

  def update(updates, state, params=None):
    factors = {name: jnp.minimum(1, max_norm / (norm + 1e-6))
               for name, norm in module_norms(updates).items()}
    clipped = {name: jax.tree.map(lambda g, f=factors[name]: g * f, update)
               for name, update in updates.items()}
    return clipped, state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def is_group(x: Any) -> bool:
  """Whether a part of a tree of groups is one of them; a `ParamGroup` is a tuple."""
  return isinstance(x, ParamGroup)


def adam(groups: Params, b1: float, b2: float, freeze: int) -> optax.GradientTransformation:
  """Adam's direction (eps 1e-8, bias-corrected), with moments for what is trained alone.

  With `freeze`, the moments of the backbone stay as they are for so many steps, and so does the
  count that corrects their bias: its first update is then as large as that of a fresh start. With
  one count for all it would be a multiple of that. `update` takes `step=`.
  """

  def of(part: Params) -> optax.GradientTransformation:
    direction = optax.scale_by_adam(b1, b2, eps=1e-8)
    trained = jax.tree.map(lambda group: group.trained, part, is_leaf=is_group)
    return direction if all(jax.tree.leaves(trained)) else optax.masked(direction, trained)

  if not freeze:
    return of(groups)
  split = lambda tree: {"backbone": {"backbone": tree["backbone"]},
                        "heads": {name: x for name, x in tree.items() if name != "backbone"}}
  parts = {name: of(part) for name, part in split(groups).items()}

  def init(params):
    return {name: parts[name].init(part) for name, part in split(params).items()}

  def update(updates, state, params=None, *, step, **_):
    new = {name: parts[name].update(part, state[name]) for name, part in split(updates).items()}
    frozen = step < freeze
    keep = lambda old, new: jax.tree.map(lambda o, n: jnp.where(frozen, o, n), old, new)
    updates = {name: x for part, _ in new.values() for name, x in part.items()}
    return updates, {"backbone": keep(state["backbone"], new["backbone"][1]),
                     "heads": new["heads"][1]}

  return optax.GradientTransformationExtraArgs(init, update)


def keep_fixed(groups: Params, frozen: jax.Array | None, old: Params, new: Params) -> Params:
  """`new`, but what is not trained to the last bit as in `old`; where `frozen`, all of the
  backbone."""

  def of(group, old, new):
    if not group.trained:
      return old
    return jnp.where(frozen, old, new) if group.backbone and frozen is not None else new

  return jax.tree.map(of, groups, old, new, is_leaf=is_group)


def scale_by_groups(groups: Params, schedules: dict[str, Schedule]
                    ) -> optax.GradientTransformationExtraArgs:
  """u -> -lr_p (u + wd_p p): decoupled decay and learning rate, both at the step in `step=`.

  The step comes from the caller, because a skipped step advances the schedules but not the moments.
  """

  def update(updates, state, params, *, step, **_):
    rates = {name: schedules[name](step) for name in ("lr", "last_layer_lr", "weight_decay")}

    def scale(group, u, p):
      if not group.trained:
        return jnp.zeros_like(p)
      lr = rates["last_layer_lr" if group.last_layer else "lr"] * group.lr
      decay = rates["weight_decay"] * group.weight_decay
      if group.backbone and "backbone_ramp" in schedules:
        ramp = schedules["backbone_ramp"](step)
        lr, decay = lr * ramp, decay * ramp
      return -lr * (u + decay * p)

    return jax.tree.map(scale, groups, updates, params, is_leaf=is_group), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def make_optimizer(groups: Params, schedules: dict[str, Schedule], *, b1: float, b2: float,
                   clip: float, freeze: int = 0) -> optax.GradientTransformationExtraArgs:
  """Clip per sub-module, AdamW (eps 1e-8, bias-corrected) and per-parameter rates, in one chain.

  A frozen last layer has rate 0; its moments go on accumulating, unlike those of a backbone that is
  frozen for the first `freeze` steps (see `adam`). `update` takes `step=`.
  """
  return optax.chain(clip_by_module_norm(clip), adam(groups, b1, b2, freeze),
                     scale_by_groups(groups, schedules))
