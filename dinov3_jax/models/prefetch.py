"""A scan over blocks that are cut over devices, the first matrix of each gathered a block ahead.

A block can begin only when its first matrix is there. Gathered in its own round of the scan, that
matrix is waited for, while the gathers of the others go on beside products. Here a round gathers
what the next one begins with, and in the backward pass a round also sends the gradients with which
the round before it ended, so that a device has products to compute meanwhile.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3_jax.models import partition

# The matrix with which a block begins. Its gradient is the last one.
FORWARD_FIRST = (("attn", "qkv", "kernel"),)
# The one with which the backward pass begins, of SwiGLU or an MLP, unless it first computes the
# block again.
BACKWARD_FIRST = (("mlp", "w3", "kernel"), ("mlp", "fc2", "kernel"))

Leaves = dict[tuple[str, ...], jax.Array]  # by path


def begins_with_a_cut_matrix(layout: dict) -> bool:
  """Whether a block's first matrix is cut over several devices; inside `jax.shard_map`.

  Args:
    layout: of its parameters.
  """
  return any(partition.is_cut(spec) for spec in _chosen(_flat(layout), FORWARD_FIRST).values())


def scan(block: Callable[[Any, dict, Any], Any], x: Any, params: dict, others: Any, *,
         layout: dict, dtype: jnp.dtype, policy: Callable | None, recomputed: bool) -> Any:
  """What `x` becomes after all blocks, for use inside `jax.shard_map` over `DATA_AXES`.

  It computes what

    jax.lax.scan(lambda x, layer: (block(x, whole(layer[0]), layer[1]), None), x, (params, others))

  does, its round under `jax.checkpoint`.

  Args:
    block: `(x, whole parameters, others) -> x`, of the same shapes.
    x: a tree of float arrays.
    params: of all blocks, stacked, as a device holds them.
    others: what a block takes beside its parameters, stacked alike. No gradient reaches it.
    layout: of one block's parameters, see `partition.whole`.
    dtype: that parameters are gathered in.
    policy: of `jax.checkpoint`; None keeps everything but whole parameters.
    recomputed: whether the backward pass first computes a block again.
  """
  specs = _flat(layout)
  depth = len(jax.tree.leaves(params)[0])
  backward_first = FORWARD_FIRST if recomputed else BACKWARD_FIRST

  def whole(leaves, index):
    at = lambda p: jax.lax.dynamic_index_in_dim(p, index, keepdims=False)
    return {name: partition.whole(at(p), specs[name], dtype) for name, p in leaves.items()}

  def mean(grads):
    return {name: partition.mean_over_shards(g, specs[name]) for name, g in grads.items()}

  @functools.partial(jax.checkpoint, prevent_cse=False,
                     policy=policy or jax.checkpoint_policies.everything_saveable)
  def saving(x, learned, fixed, other):
    return block(x, _nested(learned | jax.lax.stop_gradient(fixed)), other)

  def forward(x, learned, fixed, others, save):
    """The result, and what the backward pass needs of each block."""
    leaves = learned | fixed

    def round_(carry, layer):
      x, now = carry
      i, other = layer
      ahead = whole(_chosen(leaves, FORWARD_FIRST), jnp.minimum(i + 1, depth - 1))
      now = now | whole(_without(leaves, FORWARD_FIRST), i)
      if not save:
        return (block(x, _nested(now), other), ahead), None
      x, pullback = jax.vjp(lambda *args: saving(*args, other), x, _chosen(now, learned),
                            _without(now, learned))
      # Of what JAX keeps for the pullback, arguments of the function are here, one by one. Whole
      # parameters are taken out, and put back when they have been gathered again.
      pullback.args_res[1:] = (), ()
      return (x, ahead), pullback

    first = whole(_chosen(leaves, FORWARD_FIRST), 0)
    (x, _), kept = jax.lax.scan(round_, (x, first), (jnp.arange(depth), others))
    return x, kept

  @jax.custom_vjp
  def run(x, leaves, others):
    return forward(x, leaves, {}, others, save=False)[0]

  def run_forward(x, leaves, others):
    values = lambda tree: jax.tree.map(lambda p: p.value, tree, is_leaf=_is_primal)
    learned = {name: p.value for name, p in leaves.items() if p.perturbed}
    fixed = values(_without(leaves, learned))
    x, kept = forward(values(x), learned, fixed, values(others), save=True)
    return x, (kept, learned, fixed)

  def run_backward(saved, g):
    kept, learned, fixed = saved
    leaves = learned | fixed
    g = jax.tree.map(_instantiated, g, is_leaf=_is_zero)

    def round_(carry, layer):
      g, now, pending = carry
      i, pullback = layer
      ahead = whole(_chosen(leaves, backward_first), jnp.maximum(i - 1, 0))
      now = now | whole(_without(leaves, backward_first), i)
      pullback.args_res[1:] = _chosen(now, learned), _without(now, learned)
      g, grads, _ = pullback(g)
      following = _chosen(grads, FORWARD_FIRST)
      return (g, ahead, following), mean(_without(grads, FORWARD_FIRST) | pending)

    last = whole(_chosen(leaves, backward_first), depth - 1)
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(
      lambda: whole(_chosen(learned, FORWARD_FIRST), 0)))
    (g, _, pending), grads = jax.lax.scan(round_, (g, last, none), (jnp.arange(depth), kept),
                                         reverse=True)
    # A round has sent those of the block after its own, the first one zeros.
    for name, first in mean(pending).items():
      grads[name] = jnp.concatenate([first[None], grads[name][:-1]])
    return g, grads | dict.fromkeys(fixed), None

  run.defvjp(run_forward, run_backward, symbolic_zeros=True)
  return run(x, _flat(params), others)


def _is_primal(x: Any) -> bool:
  return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def _is_zero(x: Any) -> bool:
  return isinstance(x, jax.custom_derivatives.SymbolicZero)


def _instantiated(x: Any) -> jax.Array:
  return jnp.zeros(x.shape, x.dtype) if _is_zero(x) else x


def _flat(tree: dict) -> Leaves:
  return nnx.traversals.flatten_mapping(tree)


def _nested(leaves: Leaves) -> dict:
  return nnx.traversals.unflatten_mapping(leaves)


def _chosen(leaves: Leaves, names: Iterable[tuple[str, ...]]) -> Leaves:
  return {name: leaves[name] for name in names if name in leaves}


def _without(leaves: Leaves, names: Iterable[tuple[str, ...]]) -> Leaves:
  return {name: leaf for name, leaf in leaves.items() if name not in set(names)}
