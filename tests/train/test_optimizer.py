import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from dinov3_jax.train.optimizer import (
  clip_by_module_norm,
  keep_fixed,
  make_optimizer,
  param_groups,
)
from dinov3_jax.train.state import abstract_modules
from dinov3_jax.weights.naming import flatten

DECAY = 0.9

# Official name, learning-rate multiplier, whether weight decay applies, whether a last layer.
TABLE = [
    ("backbone.cls_token", DECAY**13, True, False),
    ("backbone.storage_tokens", DECAY**13, True, False),
    ("backbone.mask_token", DECAY**13, True, False),
    ("backbone.patch_embed.proj.weight", 0.2 * DECAY**13, True, False),
    ("backbone.patch_embed.proj.bias", 0.2 * DECAY**13, False, False),
    ("backbone.blocks.0.attn.qkv.weight", DECAY**12, True, False),
    ("backbone.blocks.0.attn.qkv.bias", DECAY**12, False, False),
    ("backbone.blocks.0.norm1.weight", DECAY**12, False, False),
    ("backbone.blocks.0.norm1.bias", DECAY**12, False, False),
    ("backbone.blocks.0.ls1.gamma", DECAY**12, False, False),
    ("backbone.blocks.5.attn.proj.weight", DECAY**7, True, False),
    ("backbone.blocks.5.mlp.fc1.weight", DECAY**7, True, False),
    ("backbone.blocks.11.mlp.fc2.weight", DECAY, True, False),
    ("backbone.blocks.11.mlp.fc2.bias", DECAY, False, False),
    ("backbone.blocks.11.ls2.gamma", DECAY, False, False),
    ("backbone.norm.weight", 1.0, False, False),
    ("backbone.norm.bias", 1.0, False, False),
    ("backbone.cls_norm.weight", 1.0, False, False),
    ("backbone.local_cls_norm.bias", 1.0, False, False),
    ("dino_head.mlp.0.weight", 1.0, True, False),
    ("dino_head.mlp.2.bias", 1.0, False, False),
    ("dino_head.last_layer.weight", 1.0, True, True),
    ("ibot_head.mlp.4.weight", 1.0, True, False),
    ("ibot_head.mlp.4.bias", 1.0, False, False),
    ("ibot_head.last_layer.weight", 1.0, True, True),
]


def test_the_multipliers_that_the_reference_prints():
  multiplier = {name: rate for name, rate, _, _ in TABLE}
  for name, expected in [("backbone.cls_token", 0.254), ("backbone.patch_embed.proj.bias", 0.0508),
                         ("backbone.blocks.0.ls1.gamma", 0.282),
                         ("backbone.blocks.11.ls2.gamma", 0.9)]:
    np.testing.assert_allclose(multiplier[name], expected, rtol=2e-3)


@pytest.fixture(scope="module")
def params():
  """Random parameters of a network with twelve blocks."""
  config = base.get_config()
  config.model.update(width=8, depth=12, num_heads=2, patch_size=2, storage_tokens=2,
                      untie_cls_and_patch_norms=True, untie_global_and_local_cls_norm=True)
  for head in (config.dino, config.ibot):
    head.update(prototypes=8, hidden=8, bottleneck=4)
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32),
                      abstract_modules(config)[1])


def schedules(lr=1e-2, last_layer_lr=3e-3, weight_decay=0.1):
  """Rates that grow with the step, so that a stale one shows."""
  rate = lambda value: lambda step: value * (1 + step)
  return dict(lr=rate(lr), last_layer_lr=rate(last_layer_lr), weight_decay=rate(weight_decay))


def groups_of(params, dino_head_wd_mult=1.0):
  return param_groups(params, layerwise_decay=DECAY, patch_embed_lr_mult=0.2,
                      dino_head_wd_mult=dino_head_wd_mult)


def run(optimizer, params, grads, steps):
  """The parameters after `steps` updates with the same gradient, and the optimizer's state."""

  @jax.jit
  def update(params, state, step):
    updates, state = optimizer.update(grads, state, params, step=step)
    return jax.tree.map(jnp.add, params, updates), state

  state = optimizer.init(params)
  for step in range(steps):
    params, state = update(params, state, step)
  return jax.device_get(params), state


def adamw(p, g, lr, weight_decay, steps, b1=0.9, b2=0.99, eps=1e-8):
  """Decoupled AdamW in float64; `lr` and `weight_decay` are those of step 0 and grow with it."""
  p, mean, square = np.float64(p), 0.0, 0.0
  for step in range(steps):
    mean, square = b1 * mean + (1 - b1) * g, b2 * square + (1 - b2) * g**2
    p = p * (1 - lr * (1 + step) * weight_decay * (1 + step))
    scale = np.sqrt(square / (1 - b2**(step + 1))) + eps
    p = p - lr * (1 + step) * mean / (1 - b1**(step + 1)) / scale
  return p


@pytest.mark.parametrize("dino_head_wd_mult", [1.0, 5.0])
def test_every_group_sees_its_rate_and_decay(params, dino_head_wd_mult):
  """Two updates with unit gradients against AdamW written out, parameter by parameter."""
  optimizer = make_optimizer(groups_of(params, dino_head_wd_mult), schedules(), b1=0.9, b2=0.99,
                             clip=1e9)
  after, _ = run(optimizer, params, jax.tree.map(jnp.ones_like, params), 2)
  before, after = flatten(params), flatten(after)
  for name, rate, decayed, last in TABLE:
    decay = 0.1 * decayed * (dino_head_wd_mult if name.startswith("dino_head") else 1)
    lr = (3e-3 if last else 1e-2) * rate
    expected = adamw(before[name], 1.0, lr, decay, 2)
    np.testing.assert_allclose(after[name] - before[name], expected - before[name], rtol=1e-4,
                               atol=1e-6, err_msg=name)


def test_the_table_is_every_kind_of_parameter(params):
  kinds = lambda names: {name.split(".blocks.")[-1].lstrip("0123456789.") for name in names}
  left = kinds(flatten(params)) - kinds(name for name, *_ in TABLE)
  same = {"attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.bias", "backbone.cls_norm.bias",
          "backbone.local_cls_norm.weight"}
  heads = {f"{head}.mlp.{i}.{kind}" for head in ("dino_head", "ibot_head") for i in (0, 2, 4)
           for kind in ("weight", "bias")}
  assert left <= same | heads


def test_a_frozen_last_layer_stays_while_its_moments_grow(params):
  optimizer = make_optimizer(groups_of(params), schedules(last_layer_lr=0.0), b1=0.9, b2=0.99,
                             clip=1e9)
  after, state = run(optimizer, params, jax.tree.map(jnp.ones_like, params), 2)
  for head in ("dino_head", "ibot_head"):
    layer = lambda tree, head=head: tree[head]["last_layer"]["kernel"]
    np.testing.assert_array_equal(layer(after), layer(params))
    np.testing.assert_allclose(layer(state[1].mu), 1 - 0.9**2, rtol=1e-6)
    np.testing.assert_allclose(layer(state[1].nu), 1 - 0.99**2, rtol=1e-4)
    assert (after[head]["mlp"]["2"]["kernel"] != params[head]["mlp"]["2"]["kernel"]).all()


def test_each_module_is_clipped_by_its_own_norm(params):
  rng = np.random.default_rng(1)
  target = dict(backbone=10.0, dino_head=0.5, ibot_head=4.0)

  def of_norm(tree, norm):
    leaves, structure = jax.tree.flatten(jax.tree.map(lambda x: rng.standard_normal(x.shape), tree))
    scale = norm / np.sqrt(sum((x**2).sum() for x in leaves))
    return jax.tree.unflatten(structure, [np.float32(scale * x) for x in leaves])

  grads = {name: of_norm(params[name], norm) for name, norm in target.items()}
  clipped, _ = jax.jit(clip_by_module_norm(3.0).update)(grads, None)
  for name, norm in target.items():
    factor = min(1.0, 3.0 / (norm + 1e-6))
    jax.tree.map(lambda c, g, f=factor: np.testing.assert_allclose(c, f * g, rtol=1e-5),
                 clipped[name], grads[name])


def test_zero_gradients_are_no_division_by_zero(params):
  optimizer = make_optimizer(groups_of(params), schedules(weight_decay=0.0), b1=0.9, b2=0.99,
                             clip=1.0)
  after, _ = run(optimizer, params, jax.tree.map(jnp.zeros_like, params), 1)
  jax.tree.map(np.testing.assert_array_equal, after, params)




def test_moments_of_a_frozen_backbone_begin_with_its_first_step(params):
  """After the wait, its updates and moments are those of a backbone that did not wait."""
  constant = lambda value: lambda step: jnp.float32(value)
  rates = dict(lr=constant(1e-2), last_layer_lr=constant(1e-2), weight_decay=constant(0.1),
               backbone_ramp=lambda step: jnp.float32(step >= 3))
  make = lambda freeze: make_optimizer(groups_of(params), rates, b1=0.9, b2=0.99, clip=1e9,
                                       freeze=freeze)
  grads = jax.tree.map(jnp.ones_like, params)
  after, state = run(make(3), params, grads, 5)
  del rates["backbone_ramp"]
  expected, _ = run(make(0), params, grads, 2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
               after["backbone"], expected["backbone"])
  expected, _ = run(make(0), params, grads, 5)
  np.testing.assert_allclose(after["dino_head"]["mlp"]["2"]["kernel"],
                             expected["dino_head"]["mlp"]["2"]["kernel"], rtol=1e-5)
  assert int(state[1]["backbone"].count) == 2 and int(state[1]["heads"].count) == 5
  _, state = run(make(3), params, grads, 3)
  assert not any(map(np.any, jax.tree.leaves(state[1]["backbone"])))


def test_rate_and_decay_of_the_backbone_rise_with_the_ramp_and_its_own_factor(params):
  constant = lambda value: lambda step: jnp.float32(value)
  rates = dict(lr=constant(1e-2), last_layer_lr=constant(1e-2), weight_decay=constant(0.1),
               backbone_ramp=constant(0.25))
  groups = param_groups(params, layerwise_decay=1.0, patch_embed_lr_mult=1.0, dino_head_wd_mult=1.0,
                        backbone_lr_mult=0.5)
  after, _ = run(make_optimizer(groups, rates, b1=0.9, b2=0.99, clip=1e9), params,
                 jax.tree.map(jnp.ones_like, params), 1)
  for name, x in flatten(after).items():
    before = flatten(params)[name]
    backbone = name.startswith("backbone")
    lr, decay = (0.125e-2, 0.025) if backbone else (1e-2, 0.1)
    decayed = not name.endswith("bias") and "norm" not in name and "gamma" not in name
    np.testing.assert_allclose(x, before - lr * (1 + decay * decayed * before), rtol=1e-5,
                               atol=1e-6, err_msg=name)


def test_what_is_not_trained_has_no_moments_and_stays_to_the_last_bit(params):
  groups = param_groups(params, layerwise_decay=1.0, patch_embed_lr_mult=1.0, dino_head_wd_mult=1.0,
                        trained="none")
  params = {**params, "backbone": jax.tree.map(lambda x: -np.abs(0 * x), params["backbone"])}
  after, state = run(make_optimizer(groups, schedules(), b1=0.9, b2=0.99, clip=1e9), params,
                     jax.tree.map(jnp.ones_like, params), 2)
  for x, y in zip(jax.tree.leaves(after["backbone"]), jax.tree.leaves(params["backbone"])):
    np.testing.assert_array_equal(x, y)
  assert not jax.tree.leaves(state[1].inner_state.mu["backbone"])
  kept = keep_fixed(groups, None, params, jax.tree.map(lambda x: x + 1, params))
  for x, y in zip(jax.tree.leaves(kept["backbone"]), jax.tree.leaves(params["backbone"])):
    np.testing.assert_array_equal(np.signbit(x), np.signbit(y))
  assert np.all(kept["dino_head"]["last_layer"]["kernel"]
                == params["dino_head"]["last_layer"]["kernel"] + 1)
