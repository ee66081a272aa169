"""A scan over blocks that are cut over devices, the first part of each gathered a block ahead.

A block can begin only when its first matrix is there. Gathered in its own round of the scan, that
matrix is waited for, while the gathers of the others go on beside products. Here a round gathers
what the next one begins with, and likewise, on the way back, a round sends the gradients with which
the one before it ended: a device then always has products to compute meanwhile.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3_jax.models import partition

# The matrix that a block begins with, the last one to get a gradient.
FIRST = (("attn", "qkv", "kernel"),)
# The one with which the way back begins, of SwiGLU or an MLP, unless the block is computed again.
LAST = (("mlp", "w3", "kernel"), ("mlp", "fc2", "kernel"))

Leaves = dict[tuple[str, ...], jax.Array]  # by path


def helps(layout: dict) -> bool:
  """Whether a block begins with what other devices have; inside `jax.shard_map`.

  Args:
    layout: of its parameters.
  """
  return any(partition.is_cut(spec) for spec in _chosen(_flat(layout), FIRST).values())


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
    recomputed: whether the way back through a block begins with its way forth.
  """
  specs = _flat(layout)
  depth = len(jax.tree.leaves(params)[0])
  first_back = FIRST if recomputed else LAST

  def whole(leaves, index):
    at = lambda p: jax.lax.dynamic_index_in_dim(p, index, keepdims=False)
    return {name: partition.whole(at(p), specs[name], dtype) for name, p in leaves.items()}

  def mean(grads):
    return {name: partition.mean(g, specs[name]) for name, g in grads.items()}

  @functools.partial(jax.checkpoint, prevent_cse=False,
                     policy=policy or jax.checkpoint_policies.everything_saveable)
  def saving(x, learned, fixed, other):
    return block(x, _nested(learned | jax.lax.stop_gradient(fixed)), other)

  def forth(x, learned, fixed, others, save):
    """The result, and what the way back needs of each block."""
    leaves = learned | fixed

    def one(carry, layer):
      x, now = carry
      i, other = layer
      ahead = whole(_chosen(leaves, FIRST), jnp.minimum(i + 1, depth - 1))
      now = now | whole(_without(leaves, FIRST), i)
      if not save:
        return (block(x, _nested(now), other), ahead), None
      x, pullback = jax.vjp(lambda *args: saving(*args, other), x, _chosen(now, learned),
                            _without(now, learned))
      pullback.args_res[1:] = (), ()  # whole parameters are gathered again
      return (x, ahead), pullback

    first = whole(_chosen(leaves, FIRST), 0)
    (x, _), kept = jax.lax.scan(one, (x, first), (jnp.arange(depth), others))
    return x, kept

  @jax.custom_vjp
  def run(x, leaves, others):
    return forth(x, leaves, {}, others, save=False)[0]

  def run_forth(x, leaves, others):
    values = lambda tree: jax.tree.map(lambda p: p.value, tree, is_leaf=_is_primal)
    learned = {name: p.value for name, p in leaves.items() if p.perturbed}
    fixed = values(_without(leaves, learned))
    x, kept = forth(values(x), learned, fixed, values(others), save=True)
    return x, (kept, learned, fixed)

  def run_back(saved, g):
    kept, learned, fixed = saved
    leaves = learned | fixed

    def one(carry, layer):
      g, now, behind = carry
      i, pullback = layer
      ahead = whole(_chosen(leaves, first_back), jnp.maximum(i - 1, 0))
      now = now | whole(_without(leaves, first_back), i)
      pullback.args_res[1:] = _chosen(now, learned), _without(now, learned)
      g, grads, _ = pullback(g)
      return (g, ahead, _chosen(grads, FIRST)), mean(_without(grads, FIRST) | behind)

    last = whole(_chosen(leaves, first_back), depth - 1)
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(
      lambda: whole(_chosen(learned, FIRST), 0)))
    (g, _, behind), grads = jax.lax.scan(one, (g, last, none), (jnp.arange(depth), kept),
                                         reverse=True)
    # A round has sent those of the block after its own, the last block's round nothing.
    for name, first in mean(behind).items():
      grads[name] = jnp.concatenate([first[None], grads[name][:-1]])
    return g, grads | dict.fromkeys(fixed), None

  run.defvjp(run_forth, run_back, symbolic_zeros=True)
  return run(x, _flat(params), others)


def _is_primal(x: Any) -> bool:
  return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def _flat(tree: dict) -> Leaves:
  return nnx.traversals.flatten_mapping(tree)


def _nested(leaves: Leaves) -> dict:
  return nnx.traversals.unflatten_mapping(leaves)


def _chosen(leaves: Leaves, names: Iterable[tuple[str, ...]]) -> Leaves:
  return {name: leaves[name] for name in names if name in leaves}


def _without(leaves: Leaves, names: Iterable[tuple[str, ...]]) -> Leaves:
  return {name: leaf for name, leaf in leaves.items() if name not in set(names)}
