import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.train import official, sharding
from dinov3_jax.train.optimizer import param_groups
from dinov3_jax.train.step import make_train_step
from dinov3_jax.train.targets import make_targets, teacher_crops

LOSSES = dict(total="loss", dino_local_crops_loss="dino_local_loss",
              dino_global_crops_loss="dino_global_loss", koleo_loss="koleo_loss",
              ibot_loss="ibot_loss")
SCHEDULES = dict(lr="lr", last_lr="last_layer_lr", wd="weight_decay", mom="teacher_momentum",
                 temp="teacher_temp")
STUDENTS = [("distill", "student"), ("distill_convnext", "student"), ("multidistill", "a"),
            ("multidistill", "b"), ("multidistill_3ranks", "a"), ("multidistill_3ranks", "b")]


@pytest.fixture(params=STUDENTS, ids="-".join)
def student(request, distillation):
  recording, name = request.param
  return distillation(recording).students[name]


def check_rows(rows, metrics):
  for row, values in zip(rows, metrics, strict=True):
    for theirs, ours in LOSSES.items():
      np.testing.assert_allclose(values[ours], row[theirs], rtol=1e-4, atol=5e-6,
                                 err_msg=f"{theirs} of step {row['it']}")
    for name, norm in row["grad_norm"].items():
      np.testing.assert_allclose(values[f"grad_norm/{name}"], norm, rtol=1e-3)


def test_losses_and_gradient_norms(student):
  check_rows(student.record["rows"], student.history[2])


def test_schedules(student):
  for row, values in zip(student.record["rows"], student.history[2], strict=True):
    for theirs, ours in SCHEDULES.items():
      np.testing.assert_allclose(values[ours], row[theirs], rtol=1e-6)


def named(state):
  """The student and its average by official name; a ConvNeXt's last norm has two names."""
  arrays = official.state_dict({"student": state.student, "model_ema": state.teacher})
  return {name: x for name, x in arrays.items() if ".norms.3." not in name}


def test_parameters_after_the_last_step(student):
  """Sum, norm, first and last element, each to 1e-4 of the parameter's norm."""
  _, last, _ = student.history
  ours = named(last)
  assert set(ours) == set(student.record["digest"])
  for name, digest in student.record["digest"].items():
    x = np.float64(ours[name]).ravel()
    np.testing.assert_allclose([x.sum(), np.linalg.norm(x), x[0], x[-1]], digest, rtol=0,
                               atol=1e-4 * digest[1], err_msg=name)


def test_how_far_each_parameter_moved(student):
  """The mask token's whole move is near the resolution of float32."""
  first, last, _ = student.history
  before, after = named(first), named(last)
  assert set(after) == set(student.record["moved"])
  for name, moved in student.record["moved"].items():
    distance = np.linalg.norm(np.float64(after[name]) - np.float64(before[name]))
    np.testing.assert_allclose(distance, moved, rtol=1e-2 if "mask_token" in name else 1e-3,
                               err_msg=name)


def test_groups(student):
  """Every parameter's rate, decay and whether it is a last layer, as the reference has them."""
  optim, state = student.config.optim, student.history[0]
  groups = param_groups(state.student, layerwise_decay=optim.layerwise_decay,
                        patch_embed_lr_mult=optim.patch_embed_lr_mult,
                        dino_head_wd_mult=optim.dino_head_wd_mult)
  for i in range(3):
    full = jax.tree.map(lambda p, g, i=i: np.broadcast_to(np.float32(g[i]), p.shape),
                        state.student, groups)
    for name, array in official.state_dict({"student": full}).items():
      if ".norms.3." not in name:
        np.testing.assert_allclose(array, float(student.record["groups"][name][i]), rtol=1e-6,
                                   err_msg=name)


@pytest.mark.parametrize("recording, name, mesh", [
  ("multidistill_3ranks", "b", dict(data=2, fsdp=1)),
  ("multidistill_3ranks", "b", dict(data=1, fsdp=2))])
def test_as_data_shards_of_several_devices(distillation, recording, name, mesh):
  run = distillation(recording)
  student, config = run.students[name], run.students[name].config.copy_and_resolve_references()
  config.mesh.update(tensor=1, **mesh)
  devices = sharding.make_mesh(config, jax.devices()[:2])
  place = lambda tree: jax.device_put(tree, sharding.state_sharding(devices, tree))
  state, teacher = place(student.state()), place(run.teacher)
  targets = jax.jit(make_targets(config, run.teacher_config, devices))
  layout = jax.tree.map(lambda x: x.sharding, state)
  step = jax.jit(make_train_step(config, devices), out_shardings=(layout, None))
  metrics = []
  for row in student.record["rows"]:
    batch = sharding.place_batch(student.batch(row["it"]), devices)
    state, values = step(state, batch | dict(targets=targets(teacher, batch)))
    metrics.append(jax.device_get(values))
  check_rows(student.record["rows"], metrics)


def test_what_the_teacher_of_a_convnext_sees(distillation):
  run = distillation("distill_convnext")
  student = run.students["student"]
  for row in student.record["rows"]:
    crops = jnp.moveaxis(jnp.asarray(student.batch(row["it"])["global_crops"]), 1, 0)
    seen = np.float64(teacher_crops(crops.reshape(-1, *crops.shape[2:]), 16, 32))
    expected = row["teacher_input"]
    assert seen.shape[1:] == (64, 64, 3)
    np.testing.assert_allclose(np.linalg.norm(seen), expected["norm"], rtol=1e-5)
    np.testing.assert_allclose(seen.sum(), expected["sum"], atol=1e-5 * expected["norm"])
    np.testing.assert_allclose(seen[0, 0, :4, 0], expected["head"], atol=1e-5)


def test_crops_stay_where_the_patches_are_equal():
  crops = jnp.ones((2, 96, 96, 3))
  assert teacher_crops(crops, 16, 16) is crops


def test_masks_choose_patches_but_hide_none(distillation):
  """Other masks change iBOT's loss alone."""
  run = distillation("distill")
  student = run.students["student"]
  targets = run.targets_of(student, 0)
  step = jax.jit(make_train_step(student.config))
  first, other = (step(student.state(), student.batch(i) | dict(
    {name: student.batch(0)[name] for name in ("global_crops", "local_crops")}, targets=targets))
    for i in (0, 1))
  for name in ("dino_global_loss", "dino_local_loss", "koleo_loss"):
    assert first[1][name] == other[1][name]
  assert first[1]["ibot_loss"] != other[1]["ibot_loss"]


def test_the_teacher_normalises_uint8_as_it_was_trained(distillation):
  run = distillation("distill")
  config = run.students["student"].config
  teacher = run.teacher_config.copy_and_resolve_references()
  teacher.crops.update(mean=(0.4, 0.3, 0.2), std=(0.3, 0.2, 0.1))
  crops = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3)).astype(np.uint8)
  normal = ((crops / np.float32(255) - np.float32([0.4, 0.3, 0.2]))
            / np.float32([0.3, 0.2, 0.1])).astype(np.float32)
  targets = jax.jit(make_targets(config, teacher))
  of_uint8, of_float = (targets(run.teacher, dict(global_crops=x)) for x in (crops, normal))
  for name in ("cls", "patches"):
    np.testing.assert_allclose(of_uint8[name], of_float[name], atol=2e-5)
  np.testing.assert_allclose(np.linalg.norm(of_float["cls"], axis=-1), 1, atol=1e-5)
  assert of_float["patches"].shape == (2, 2, 4, teacher.ibot.bottleneck)


@pytest.mark.parametrize("changes, message", [
  ({"dino.prototypes": 500}, r"dino head has 512 prototypes, that of the student 500: set dino\."),
  ({"ibot.prototypes": 500}, r"ibot head has 384 prototypes, that of the student 500"),
  ({"model.patch_size": 8}, "a patch of the student is 8 pixels wide and one of the teacher 16"),
  ({"gram.teacher": "ema"}, "gram.teacher='ema' does not go with distillation"),
])
def test_students_that_cannot_learn_from_a_teacher(distillation, changes, message):
  run = distillation("distill")
  config = run.students["student"].config.copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message) as error:
    make_targets(config, run.teacher_config)
  assert "\n" not in str(error.value)
