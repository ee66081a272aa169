import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinov3_jax.losses import bicubic_downsample, dino_loss, sinkhorn
from dinov3_jax.train import sharding
from dinov3_jax.train.objective import gather_masked, make_objective, normalise
from dinov3_jax.train.state import abstract_modules, init_state
from dinov3_jax.train.step import make_train_step

VALUES = dict(dino_local_weight=0.5, gram_weight=3.0, teacher_temp=0.07)


@pytest.fixture
def config(trajectory):
  """A copy of the settings of the recorded run with a Gram teacher."""
  return trajectory("gram").config.copy_and_resolve_references()


def evaluate(config, state, batch):
  """The objective, the patches of student, EMA teacher and Gram teacher that it compares, and
  DINO's losses from whole matrices of logits."""
  graphs, _ = abstract_modules(config)
  objective = make_objective(config, graphs)

  @jax.jit
  def run(state, batch):
    total, metrics = objective(state.student, state.teacher, state.gram_teacher, batch, VALUES,
                               jax.random.key(0))
    global_crops, local_crops = (normalise(batch[name], (), (), jnp.float32)
                                 for name in ("global_crops", "local_crops"))
    part = lambda params, name: nnx.merge(graphs[name], params[name])
    masks = batch["masks"].reshape(len(global_crops), -1)
    student, local = part(state.student, "backbone").forward_crops(global_crops, local_crops, masks)
    teacher = part(state.teacher, "backbone")(global_crops)

    logits = lambda params, tokens: part(params, "dino_head")(tokens["cls"])
    per_image = lambda x: x.reshape(len(batch["masks"]), -1, x.shape[-1])
    targets = per_image(sinkhorn(logits(state.teacher, teacher), VALUES["teacher_temp"]))
    student_logits = [per_image(logits(state.student, tokens)) for tokens in (student, local)]
    plain = dict(
        dino_global_loss=dino_loss(student_logits[0], targets,
                                   ignore_diagonal=config.dino.ignore_diagonal),
        dino_local_loss=dino_loss(student_logits[1], targets))

    patches = dict(student=student["patches"], teacher=teacher["patches"])
    if config.gram.teacher == "own":
      gram_crops = normalise(batch["gram_crops"], (), (), jnp.float32)
      maps = part(state.gram_teacher, "backbone")(gram_crops)
      maps = bicubic_downsample(maps["patches"].reshape(len(global_crops), 12, 12, -1), (6, 6))
      patches["gram"] = maps.reshape(patches["student"].shape)
    return total, metrics, patches, plain

  total, metrics, patches, plain = jax.device_get(run(state, batch))
  return total, metrics, {name: np.float64(x) for name, x in patches.items()}, plain


def gram_matrix_loss(student, teacher, normalized, negatives):
  """The loss over one set of tokens [n, D], in float64."""
  if normalized:
    student, teacher = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher))
  s, t = student @ student.T, teacher @ teacher.T
  if negatives == "remove":
    s, t = s.clip(0), t.clip(0)
  if negatives == "remove_teacher_only":
    s, t = np.where(t < 0, 0, s), np.where(t < 0, 0, t)
  return ((s - t)**2).mean()


@pytest.mark.parametrize("teacher, image_level, tokens, negatives, normalized, shards", [
    ("ema", True, "all", "keep", True, 1),
    ("ema", False, "masked", "remove", True, 2),
    ("own", False, "unmasked", "remove_teacher_only", True, 4),
    ("own", True, "all", "remove", False, 1),
])
def test_gram_and_the_total(trajectory, config, teacher, image_level, tokens, negatives, normalized,
                            shards):
  config.gram.update(teacher=teacher, image_level=image_level, tokens=tokens, negatives=negatives,
                     normalized=normalized, stats=not image_level)
  config.dino.update(weight=2.0, ignore_diagonal=image_level)
  config.ibot.weight = 0.7
  config.koleo.weight = 0.3
  run = trajectory("gram")
  batch = run.balanced_batch(0, shards)
  total, metrics, features, plain = evaluate(config, run.state(), batch)

  student = features["student"]
  target = features["gram" if teacher == "own" else "teacher"]
  masks = batch["masks"].reshape(8, -1)

  def gram(selected):
    sets = np.arange(8).reshape(8 if image_level else shards, -1)  # crops whose tokens may meet
    return np.mean([gram_matrix_loss(student[i][selected[i]], target[i][selected[i]], normalized,
                                     negatives) for i in sets])

  selections = dict(all=np.ones_like(masks), masked=masks, unmasked=~masks)
  np.testing.assert_allclose(metrics["gram_loss"], gram(selections[tokens]), rtol=1e-4)
  for name in ("masked", "unmasked"):
    if config.gram.stats:
      np.testing.assert_allclose(metrics[f"gram_loss_{name}"], gram(selections[name]),
                                 rtol=1e-4)
    else:
      assert f"gram_loss_{name}" not in metrics

  for name, expected in plain.items():
    np.testing.assert_allclose(metrics[name], expected, rtol=1e-5)

  # Two global and four local crops: 2 or 4 global pairs beside 8 local ones.
  share = 2 / 10 if image_level else 4 / 12
  weighted = (2.0 * 0.5 * (1 - share) * metrics["dino_local_loss"]
              + 2.0 * share * metrics["dino_global_loss"] + 0.7 * metrics["ibot_loss"]
              + 2 * 0.3 * metrics["koleo_loss"] + 3.0 * metrics["gram_loss"])
  np.testing.assert_allclose(total, weighted, rtol=1e-5)


def test_of_the_masks_only_the_student_knows(trajectory, config):
  """Targets come from unmasked crops: other masks, the same local loss."""
  config.gram.teacher = "none"
  run = trajectory("gram")
  batch = run.balanced_batch(0)
  masks = {name: run.balanced_batch(1)[name] for name in ("masks", "mask_indices", "mask_weights")}
  _, first, *_ = evaluate(config, run.state(), batch)
  _, second, *_ = evaluate(config, run.state(), batch | masks)
  assert first["dino_local_loss"] == second["dino_local_loss"]
  for name in ("dino_global_loss", "ibot_loss", "koleo_loss"):
    assert abs(first[name] - second[name]) > 1e-3


def test_a_fresh_network_guesses(trajectory, config):
  """Uniform predictions cost ln K; iBOT counts the unmasked half of the crops, too."""
  config.gram.teacher = "none"
  _, metrics, *_ = evaluate(config, jax.jit(lambda: init_state(config))(),
                           trajectory("gram").batch(0))
  for name, expected in [("dino_local_loss", math.log(512)), ("dino_global_loss", math.log(512)),
                         ("ibot_loss", math.log(384) / 2)]:
    np.testing.assert_allclose(metrics[name], expected, rtol=0.01)


def test_masked_patches_are_gathered_from_their_own_shard(trajectory):
  for shards in (1, 2, 4):
    batch = trajectory("pretrain").balanced_batch(0, shards)
    patches = np.random.default_rng(0).standard_normal((8, 36, 5)).astype(np.float32)
    gathered = gather_masked(jnp.asarray(patches), batch["mask_indices"])
    np.testing.assert_array_equal(gathered, patches[batch["masks"].reshape(8, 36)])


def test_bytes_are_normalised_and_floats_are_not():
  rng = np.random.default_rng(0)
  crops = rng.integers(0, 256, (2, 3, 4, 4, 3)).astype(np.uint8)
  mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
  images = normalise(jnp.asarray(crops), mean, std, jnp.float32)
  expected = (crops / 255 - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(images, expected.reshape(6, 4, 4, 3), rtol=1e-5, atol=1e-6)
  floats = rng.standard_normal((2, 3, 4, 4, 3)).astype(np.float32)
  np.testing.assert_array_equal(normalise(floats, mean, std, jnp.float32),
                                floats.reshape(6, 4, 4, 3))
  assert normalise(jnp.asarray(crops), mean, std, jnp.bfloat16).dtype == jnp.bfloat16


def test_without_its_weight_koleo_asks_for_no_group(tiny_config):
  tiny_config.koleo.update(weight=0.0, group=3)  # of four images
  step = make_train_step(tiny_config)
  state = jax.eval_shape(functools.partial(init_state, tiny_config))
  mesh = sharding.make_mesh(tiny_config, jax.devices()[:1])
  batch = sharding.abstract_batch(tiny_config, mesh)
  jax.eval_shape(step, state, batch)
  tiny_config.koleo.weight = 0.1
  with pytest.raises(ValueError, match="KoLeo groups of 3 do not divide 4 rows"):
    jax.eval_shape(make_train_step(tiny_config), state, batch)
