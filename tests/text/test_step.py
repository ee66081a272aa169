import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.text.step import make_features, make_train_step
from dinov3_jax.train import sharding

MESHES = {"one device": None, "data=2": dict(data=2, fsdp=1), "fsdp=2": dict(data=1, fsdp=2),
          "data=4, fsdp=2": dict(data=4, fsdp=2)}
RUNS = [("dinotxt", "one device"), ("dinotxt", "fsdp=2"), ("dinotxt", "data=4, fsdp=2"),
        ("dinotxt_gram", "one device"), ("dinotxt_gram", "data=2"),
        ("dinotxt_gram", "data=4, fsdp=2")]
NORMS = {"visual_model.head": "vision_head", "text_model.backbone": "text_tower",
         "text_model.head": "text_head", "logit_scale": "logit_scale"}


@functools.cache
def history(run, sizes):
  """The metrics of the recorded steps, and the trained parameters after the last."""
  config, place, mesh, layout = run.config, lambda x: x, None, {}
  if sizes:
    config = config.copy_and_resolve_references()
    config.mesh.update(tensor=1, **dict(sizes))
    mesh = sharding.make_mesh(config, jax.devices()[:np.prod([n for _, n in sizes])])
    place = lambda tree: jax.device_put(tree, sharding.state_sharding(mesh, tree))
  state, backbone = place(run.state()), place({"backbone": run.backbone_params})["backbone"]
  if mesh is not None:
    layout = dict(out_shardings=(jax.tree.map(lambda x: x.sharding, state), None))
  features = jax.jit(make_features(config, run.backbone, mesh))
  step = jax.jit(make_train_step(config, run.backbone, mesh), donate_argnums=0, **layout)
  metrics = []
  for row in run.record["rows"]:
    batch = run.pairs(row["it"])
    if mesh is not None:
      batch = sharding.place_batch(batch, mesh)
    seen = features(backbone, batch["images"])
    state, values = step(state, dict(tokens=batch["tokens"], features=seen))
    metrics.append(jax.device_get(values))
  return metrics, jax.device_get(state.student)


@pytest.fixture(params=RUNS, ids=", ".join)
def repeated(request, recording):
  """A recording, and what `history` makes of it on some devices."""
  name, devices = request.param
  sizes = MESHES[devices]
  return recording(name), history(recording(name), sizes and tuple(sizes.items()))


def test_losses_gradient_norms_and_schedule(repeated):
  run, (metrics, _) = repeated
  for row, values in zip(run.record["rows"], metrics, strict=True):
    expected = {"contrastive_loss": row["contrastive_loss"], "loss": row["total"],
                "logit_scale": row["logit_scale"]}
    if "gram_loss" in row:
      expected["gram_loss"] = row["gram_loss"]
    for name, value in expected.items():
      np.testing.assert_allclose(values[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(values["lr"], row["lr"], rtol=1e-6)
    for theirs, ours in NORMS.items():
      np.testing.assert_allclose(values[f"grad_norm/{ours}"], row["grad_norm"][theirs], rtol=1e-3,
                                 err_msg=theirs)


def test_parameters_after_the_last_step(repeated):
  """Sum, norm, first and last element, each to 1e-4 of the parameter's norm."""
  run, (_, student) = repeated
  ours = run.named(student)
  assert set(ours) == set(run.record["digest"])
  for name, digest in run.record["digest"].items():
    x = np.float64(ours[name]).ravel()
    np.testing.assert_allclose([x.sum(), np.linalg.norm(x), x[0], x[-1]], digest, rtol=0,
                               atol=1e-4 * digest[1], err_msg=name)


def test_how_far_each_parameter_moved(repeated):
  run, (_, student) = repeated
  before, after = run.named(run.student), run.named(student)
  for name, moved in run.record["moved"].items():
    distance = np.linalg.norm(np.float64(after[name]) - np.float64(before[name]))
    np.testing.assert_allclose(distance, moved, rtol=1e-3, err_msg=name)


def test_a_step_that_is_not_finite_changes_nothing_but_its_number(recording):
  run = recording("dinotxt")
  state, batch = run.state(), run.pairs(0)
  features = dict(cls=jnp.full((8, 64), jnp.nan), storage=jnp.zeros((8, 4, 64)),
                  patches=jnp.zeros((8, 16, 64)))
  new, metrics = jax.jit(make_train_step(run.config, run.backbone))(
    state, dict(tokens=batch["tokens"], features=features))
  assert metrics["skipped"] == 1 and new.step == 1
  jax.tree.map(np.testing.assert_array_equal, (new.student, new.opt_state),
               (state.student, state.opt_state))


def test_the_scale_stays_within_its_bounds(recording):
  run = recording("dinotxt_gram")
  state, batch = run.state(), run.pairs(0)
  state.student["logit_scale"] = jnp.array([9.0])
  seen = jax.jit(make_features(run.config, run.backbone))(run.backbone_params, batch["images"])
  new, _ = jax.jit(make_train_step(run.config, run.backbone))(
    state, dict(tokens=batch["tokens"], features=seen))
  np.testing.assert_allclose(np.exp(new.student["logit_scale"]), [100.0], rtol=1e-6)
