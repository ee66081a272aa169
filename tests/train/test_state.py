import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.train.state import abstract_modules, has_gram_teacher, init_state


@pytest.mark.parametrize("gram", ["none", "ema", "own"])
def test_teachers_start_as_the_student(tiny_config, gram):
  tiny_config.gram.teacher = gram
  tiny_config.train.dtype = "bfloat16"
  state = jax.jit(lambda: init_state(tiny_config))()
  chex.assert_trees_all_equal(state.teacher, state.student)
  if gram == "own":
    chex.assert_trees_all_equal(state.gram_teacher, {"backbone": state.student["backbone"]})
  else:
    assert state.gram_teacher is None
  assert has_gram_teacher(tiny_config) == (gram == "own")
  assert state.step == 0 and state.step.dtype == jnp.int32
  dtypes = {x.dtype for x in jax.tree.leaves((state.student, state.teacher, state.gram_teacher))}
  assert dtypes == {jnp.dtype("float32")}
  assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))


def test_no_memory_is_shared(tiny_config):
  """Else donating the state would free one network's memory under another."""
  tiny_config.gram.teacher = "own"
  state = jax.jit(lambda: init_state(tiny_config))()
  leaves = jax.tree.leaves(state)
  assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


def test_parameters_follow_from_the_seed(tiny_config):

  def make(seed):
    tiny_config.seed = seed
    return jax.jit(lambda: init_state(tiny_config).student)()

  first, again, other = map(make, (0, 0, 1))
  chex.assert_trees_all_equal(first, again)
  drawn = lambda x: len(np.unique(x)) > 2  # not all zeros, ones or one number
  for path, x in jax.tree_util.tree_leaves_with_path(first):
    y = functools.reduce(lambda tree, key: tree[key.key], path, other)
    assert drawn(x) == bool((x != y).any())


def test_networks_and_blocks_are_drawn_apart(tiny_config):
  student = jax.jit(lambda: init_state(tiny_config).student)()
  dino, ibot = (student[name]["mlp"]["1"]["kernel"] for name in ("dino_head", "ibot_head"))
  assert (dino != ibot).any()
  first, second = student["backbone"]["blocks"]["mlp"]["fc1"]["kernel"]
  assert (first != second).any()


def test_shapes_need_no_memory(tiny_config):
  tiny_config.model.update(width=8192, num_heads=64, depth=400)
  graphs, params = abstract_modules(tiny_config)
  assert set(graphs) == set(params) == {"backbone", "dino_head", "ibot_head"}
  assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params))
  state = jax.eval_shape(lambda: init_state(tiny_config))
  chex.assert_trees_all_equal_shapes_and_dtypes(state.student, params)
  assert sum(x.size for x in jax.tree.leaves(params)) > 3e11


def test_unknown_gram_teacher(tiny_config):
  tiny_config.gram.teacher = "student"
  with pytest.raises(ValueError, match=r"gram\.teacher must be none, ema or own, not 'student'"):
    has_gram_teacher(tiny_config)
