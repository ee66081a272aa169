import functools
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov3_jax.train import official
from dinov3_jax.train.optimizer import ParamGroup, param_groups
from dinov3_jax.train.state import init_state
from dinov3_jax.train.step import gram_refresh_due, make_train_step

LOSSES = dict(total="loss", dino_local_crops_loss="dino_local_loss",
              dino_global_crops_loss="dino_global_loss", koleo_loss="koleo_loss",
              ibot_loss="ibot_loss", gram_loss="gram_loss")
SCHEDULES = dict(lr="lr", last_lr="last_layer_lr", wd="weight_decay", mom="teacher_momentum",
                 temp="teacher_temp", gram_loss_weight="gram_weight")


@pytest.fixture(scope="module", params=["pretrain", "gram"])
def recorded(request, trajectory):
  return trajectory(request.param)


def host(state):
  """A copy of a state that outlives its donation."""
  return jax.tree.map(np.array, jax.device_get(state))


def test_losses(recorded):
  for row, metrics in zip(recorded.record["rows"], recorded.history[1]):
    assert {name for name in row if name.endswith("_loss")} <= set(LOSSES)
    for theirs in LOSSES.keys() & row.keys():
      np.testing.assert_allclose(metrics[LOSSES[theirs]], row[theirs], rtol=1e-4,
                                 err_msg=f"{theirs} of step {row['it']}")


@pytest.mark.parametrize("matmul, losses, norms", [("", 1e-3, 0.03), ("int8", 2e-3, 0.1),
                                                   ("fp8", 1e-2, 0.3)])
def test_products_of_fewer_bits_follow_the_recording(recorded, matmul, losses, norms):
  """In bfloat16, and in 8 bits beside it. KoLeo, of distances between images that start all alike,
  is left out."""
  config = recorded.config.copy_and_resolve_references()
  config.train.update(dtype="bfloat16", matmul=matmul)
  step, state = jax.jit(make_train_step(config)), recorded.state()
  off = []
  for row in recorded.record["rows"]:
    state, metrics = step(state, recorded.batch(row["it"]))
    for name in row.keys() & {"total", "dino_local_crops_loss", "dino_global_crops_loss",
                              "ibot_loss"}:
      off.append(abs(metrics[LOSSES[name]] / row[name] - 1))
      assert off[-1] < losses, name
    for name, norm in row["grad_norm"].items():
      np.testing.assert_allclose(metrics[f"grad_norm/{name}"], norm, rtol=norms)
  assert max(off) > 1e-5  # they are rounded


def test_gradient_norms(recorded):
  for row, metrics in zip(recorded.record["rows"], recorded.history[1]):
    for name, norm in row["grad_norm"].items():
      np.testing.assert_allclose(metrics[f"grad_norm/{name}"], norm, rtol=1e-4)


def test_schedules(recorded):
  for row, metrics in zip(recorded.record["rows"], recorded.history[1]):
    for theirs in SCHEDULES.keys() & row.keys():
      np.testing.assert_allclose(metrics[SCHEDULES[theirs]], row[theirs], rtol=1e-6)


def test_parameters_after_the_last_step(recorded):
  """Sum, norm, first and last element of every parameter.

  A norm is compared with itself. Elements of either sign cancel in a sum, which may come out near
  zero and is off by as much as its elements are, so the norm bounds what counts as close; likewise
  a single element is as exact as the parameter's typical (root mean square) element.
  """
  state = recorded.history[0][-1]
  ours = official.state_dict({"student": state.student, "teacher": state.teacher})
  assert set(ours) == set(recorded.record["digest"])
  for name, (total, norm, first, last) in recorded.record["digest"].items():
    x = np.float64(ours[name]).ravel()
    np.testing.assert_allclose(np.linalg.norm(x), norm, rtol=1e-3, err_msg=name)
    for actual, expected, scale in [(x.sum(), total, norm), (x[0], first, norm / x.size**0.5),
                                    (x[-1], last, norm / x.size**0.5)]:
      assert abs(actual - expected) <= 1e-3 * max(abs(expected), scale), name


def test_the_student_changes(recorded):
  first, *_, last = recorded.history[0]
  for path, x in jax.tree_util.tree_leaves_with_path(first.student):
    y = functools.reduce(lambda tree, key: tree[key.key], path, last.student)
    assert (x != y).mean() > 0.6, path  # a masked K bias, a third of its array, has no gradient


def test_the_teacher_is_the_average_to_the_last_bit(recorded):
  """m t + (1 - m) s in float32; a compiler may fuse either product with the sum, and so round it
  once less."""
  states, metrics = recorded.history
  for before, after, values in zip(states, states[1:], metrics):
    m = values["teacher_momentum"]
    rest = np.float32(1) - m

    def check(t, new, s, m=m, rest=rest):
      exact = lambda a, b: np.float64(a) * np.float64(b)
      roundings = [m * t + rest * s, np.float32(exact(m, t) + rest * s),
                   np.float32(m * t + exact(rest, s))]
      assert np.any([new == r for r in roundings], axis=0).all()

    jax.tree.map(check, before.teacher, after.teacher, after.student)


def test_every_parameter_moved_at_its_rate_and_decay(recorded):
  """From the moments of each step: p - lr (mean / (sqrt(square) + eps) + wd p), with the rates of
  the recorded rows and the groups that test_optimizer holds against a table."""
  optim = recorded.config.optim
  states, _ = recorded.history
  groups = param_groups(states[0].student, layerwise_decay=optim.layerwise_decay,
                        patch_embed_lr_mult=optim.patch_embed_lr_mult,
                        dino_head_wd_mult=optim.dino_head_wd_mult)
  for row, before, after in zip(recorded.record["rows"], states, states[1:]):
    steps = row["it"] + 1

    def check(group, p, new, mean, square, row=row, steps=steps):
      p, mean, square = map(np.float64, (p, mean, square))
      scale = np.sqrt(square / (1 - optim.b2**steps)) + 1e-8
      lr = group.lr * row["last_lr" if group.last_layer else "lr"]
      update = mean / (1 - optim.b1**steps) / scale + group.weight_decay * row["wd"] * p
      np.testing.assert_allclose(new, p - lr * update, rtol=1e-6, atol=1e-7)

    moments = after.opt_state[1]
    jax.tree.map(check, groups, before.student, after.student, moments.mu, moments.nu,
                 is_leaf=lambda x: isinstance(x, ParamGroup))


def test_frozen_last_layers_wait_with_growing_moments(recorded):
  states, _ = recorded.history
  rows = recorded.record["rows"]
  frozen = [row["last_lr"] == 0 for row in rows]
  assert 0 < sum(frozen) < len(rows) and rows[1]["lr"] > 0
  for head in ("dino_head", "ibot_head"):
    layer = lambda tree, head=head: tree[head]["last_layer"]["kernel"]
    for is_frozen, before, after in zip(frozen, states, states[1:]):
      assert (layer(before.student) == layer(after.student)).all() == is_frozen
      assert (layer(before.opt_state[1].mu) != layer(after.opt_state[1].mu)).all()
    # The rest of the head is not frozen.
    assert (states[1].student[head]["mlp"]["0"]["kernel"]
            != states[2].student[head]["mlp"]["0"]["kernel"]).all()


def test_a_gram_teacher_without_refresh_stays(trajectory):
  first, *_, last = trajectory("gram").history[0]
  chex.assert_trees_all_equal(first.gram_teacher, last.gram_teacher)
  assert trajectory("pretrain").history[0][-1].gram_teacher is None


@pytest.mark.parametrize("crops", ["local_crops", "global_crops", "gram_crops"])
def test_a_non_finite_step_changes_nothing_but_the_step(trajectory, crops):
  gram = trajectory("gram")
  before = gram.history[0][2]
  good = gram.batch(2)
  bad = good | {crops: good[crops].copy()}
  bad[crops][1, 0, 3, 5, 1] = np.nan
  after, metrics = gram.step(jax.tree.map(jnp.array, before), bad)
  assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"])
  chex.assert_trees_all_equal(host(after).replace(step=before.step), before)
  assert after.step == before.step + 1
  # The step after trains: like its neighbour, but that the schedules went on.
  skipped = host(after)
  after, metrics = gram.step(after, good)
  assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])
  np.testing.assert_allclose(metrics["lr"], gram.record["rows"][3]["lr"])
  assert int(after.opt_state[1].count) == int(before.opt_state[1].count) + 1
  changed = jax.tree.map(lambda a, b: bool((a != b).any()), skipped.student, host(after).student)
  assert all(jax.tree.leaves(changed))


def test_compiled_once(trajectory, caplog):
  run = trajectory("pretrain")
  state, _ = run.step(run.state(), run.batch(0))
  compiled = lambda: [r.message for r in caplog.records if "Compiling" in r.message]
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    for i in range(1, 3):
      state, _ = run.step(state, run.batch(i))
    assert compiled() == []
    jax.jit(lambda x: x + 1)(np.zeros(3))
    assert len(compiled()) == 1  # which shows that one would have been seen


def test_the_state_is_donated(trajectory):
  run = trajectory("pretrain")
  state = run.state()
  run.step(state, run.batch(0))
  assert all(x.is_deleted() for x in jax.tree.leaves((state.student, state.teacher,
                                                      state.opt_state)))


@given(every=st.integers(1, 7), first=st.integers(0, 20),
       most=st.one_of(st.none(), st.integers(0, 4)))
@settings(max_examples=60, deadline=None)
def test_gram_refresh_counts_as_the_reference_does(every, first, most):
  expected, count = [], 0
  for step in range(40):
    due = (step + 1 >= first and (step + 1) % every == 0 and (most is None or count < most))
    count += due
    expected.append(due)
  due = gram_refresh_due(np.arange(1, 41), every, first, most)
  np.testing.assert_array_equal(due, expected)


def test_gram_refreshes_of_the_7b_model():
  due = gram_refresh_due(np.arange(1, 1_200_001), 10_000, 1_010_000, 3)
  np.testing.assert_array_equal(np.flatnonzero(due), [1_009_999, 1_019_999, 1_029_999])
  assert not gram_refresh_due(np.int32(10_000), 0, 0, None)


def test_gram_teacher_of_a_run_with_everything(tiny_config):
  """Copied from the EMA teacher before step 1, refreshed once after step 3; with augmented uint8
  crops in bfloat16, drop-path and recomputation along the way."""
  config = tiny_config
  config.model.drop_path = 0.5
  config.model.rope.update(dtype="bfloat16", rescale=2.0, shift=0.1)
  config.train.update(dtype="bfloat16", remat="dots", prototype_chunks=2)
  config.schedules.lr.update(start=0.01, peak=0.01)
  config.gram.update(teacher="own", copy_ema_at=1, refresh_every=2, refresh_first=3,
                     max_refreshes=1, image_level=False, tokens="unmasked", stats=True,
                     negatives="remove_teacher_only")
  config.crops.gram_sizes = (64,)
  rng = np.random.default_rng(0)
  crops = lambda n, size: rng.integers(0, 256, (4, n, size, size, 3)).astype(np.uint8)
  masks = np.zeros((4, 2, 16), bool)
  masks[:, 0, :6] = True
  batch = dict(global_crops=crops(2, 32), local_crops=crops(3, 16), gram_crops=crops(2, 64),
               masks=masks, mask_indices=np.flatnonzero(masks)[None].astype(np.int32),
               mask_weights=np.full((1, 24), 1 / 6, np.float32))
  step = jax.jit(make_train_step(config), donate_argnums=0)
  states, losses = [host(jax.jit(lambda: init_state(config))())], []
  state = jax.tree.map(jnp.array, states[0])
  for _ in range(6):
    state, metrics = step(state, batch)
    assert metrics["skipped"] == 0 and metrics["gram_loss"] == metrics["gram_loss_unmasked"]
    assert metrics["gram_loss"] != metrics["gram_loss_masked"]
    states.append(host(state))
    losses.append(float(metrics["loss"]))
  backbone = lambda i: {"backbone": states[i].teacher["backbone"]}
  source = [0, 0, 1, 1, 4, 4, 4]  # the state whose teacher is the Gram teacher after i steps
  assert len({float(state.teacher["backbone"]["norm"]["bias"][0]) for state in states}) == 7
  for i, expected in enumerate(source):
    chex.assert_trees_all_equal(states[i].gram_teacher, backbone(expected))
  assert {x.dtype for x in jax.tree.leaves(states[-1].student)} == {np.dtype("float32")}
  # A step that is skipped for its student's sake does not lose the one copy.
  broken = jax.tree.map(jnp.array, states[1])
  broken.student["backbone"]["cls_token"] *= jnp.nan
  after, metrics = step(broken, batch)
  assert metrics["skipped"] == 1
  chex.assert_trees_all_equal(host(after).gram_teacher, backbone(1))
  # The step is a function of state and batch, and its randomness of the step.
  again = jax.tree.map(jnp.array, states[3])
  assert step(again, batch)[1]["loss"] == losses[3]
  other = jax.tree.map(jnp.array, states[3].replace(step=np.int32(50)))
  assert step(other, batch)[1]["loss"] != losses[3]


def test_a_run_that_anchors_itself_at_a_step(tiny_config):
  """Until then it is the run without Gram anchoring, then the one with its EMA as Gram teacher."""
  config = tiny_config
  config.schedules.lr.update(start=0.01, peak=0.01)
  rng = np.random.default_rng(0)
  crops = lambda n, size: rng.integers(0, 256, (4, n, size, size, 3)).astype(np.uint8)
  masks = np.zeros((4, 2, 16), bool)
  masks[:, 0, :6] = True
  batch = dict(global_crops=crops(2, 32), local_crops=crops(3, 16), gram_crops=crops(2, 64),
               masks=masks, mask_indices=np.flatnonzero(masks)[None].astype(np.int32),
               mask_weights=np.full((1, 24), 1 / 6, np.float32))

  def run(**gram):
    changed = config.copy_and_resolve_references()
    changed.gram.update(gram)
    state, rows = jax.jit(lambda: init_state(changed))(), []
    step = jax.jit(make_train_step(changed))
    states = [state]
    for _ in range(4):
      state, metrics = step(state, batch)
      states.append(state)
      rows.append(jax.device_get(metrics))
    return states, rows

  (_, rows_without), (states, rows) = run(), run(teacher="own", start_at=2, refresh_every=1,
                                                       refresh_first=3)
  for a, b in zip(rows_without[:2], rows[:2]):
    assert b["gram_loss"] == b["gram_weight"] == 0
    np.testing.assert_allclose(b["loss"], a["loss"], rtol=1e-6)
  assert [row["gram_weight"] for row in rows] == [0, 0, 1, 1] and rows[2]["gram_loss"] > 0
  np.testing.assert_allclose(rows[2]["loss"], rows_without[2]["loss"] + rows[2]["gram_loss"],
                             rtol=1e-4)
  # Copied before the third step; from then on a copy after every one.
  for i, source in ((0, 0), (2, 0), (3, 3), (4, 4)):
    chex.assert_trees_all_equal(states[i].gram_teacher["backbone"],
                                states[source].teacher["backbone"])
  once, _ = run(teacher="own", start_at=2)
  chex.assert_trees_all_equal(once[4].gram_teacher["backbone"], once[2].teacher["backbone"])
  # With the EMA teacher itself nothing is copied, and the loss starts all the same.
  _, rows = run(teacher="ema", start_at=3)
  assert [row["gram_loss"] > 0 for row in rows] == [False, False, False, True]


@pytest.mark.parametrize("section, key, value, message", [
    ("gram", "teacher", "frozen", r"gram\.teacher must be none, ema or own, not 'frozen'"),
    ("train", "steps", 5, r"schedules\.lr: .* train\.steps=5"),
    ("model", "ffn", "moe", r"model\.ffn must be mlp or swiglu"),
])
def test_bad_settings_are_refused_before_anything_compiles(tiny_config, section, key, value,
                                                           message):
  tiny_config[section][key] = value
  with pytest.raises(ValueError, match=message):
    make_train_step(tiny_config)


def test_a_kernel_that_the_devices_do_not_have_is_refused_before_anything_is_traced(tiny_config):
  tiny_config.train.update(dtype="bfloat16", attention="cudnn")
  with pytest.raises(ValueError, match="attention 'cudnn' is for NVIDIA GPUs, not for a cpu"):
    make_train_step(tiny_config)
