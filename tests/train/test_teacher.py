import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import save_file

import dinov3_jax
from configs import base
from dinov3_jax.models import callables
from dinov3_jax.train import checkpoint, loop, prepare, sharding, teacher
from dinov3_jax.train.state import abstract_modules, init_state
from dinov3_jax.train.targets import make_targets
from dinov3_jax.weights import exporting, naming, native
from tests import strangers
from tests.distilled import tiny_student, write_run

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def mesh(distill_config):
  return sharding.make_mesh(distill_config)


def test_without_a_name_there_is_none():
  assert teacher.find("") is None


def test_a_run_of_text_is_no_teacher(tmp_path):
  with checkpoint.Writer(tmp_path, keep=1, keep_every=0) as writer:
    writer.save(1, {"params": {"a": np.ones(2)}}, {}, ConfigDict(dict(text=dict(width=8))))
  with pytest.raises(ValueError, match="this run has aligned text with a backbone"):
    teacher.find(str(tmp_path))


def test_a_run_is_found_and_read(teacher_run, mesh):
  found = teacher.find(str(teacher_run))
  assert found.config.model.width == 24 and found.config.dino.bottleneck == 12
  assert tuple(found.config.crops.mean) == (0.5, 0.4, 0.3)
  read = found.read(mesh, "float32")
  expected, _ = checkpoint.restore_teacher(teacher_run)
  jax.tree.map(np.testing.assert_array_equal, read.params, expected)
  assert jax.tree.structure(read.params) == jax.tree.structure(found.abstract(mesh, "float32"))


def test_what_is_frozen_is_kept_in_the_dtype_of_the_computation(teacher_run, mesh):
  full, half = (teacher.find(str(teacher_run)).read(mesh, dtype)
                for dtype in ("float32", "bfloat16"))
  assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
  assert half.digest == full.digest and len(half.digest) == 16


def test_its_digest_is_that_of_every_bit(teacher_run, mesh, tmp_path):
  digest = teacher.find(str(teacher_run)).read(mesh, "float32").digest
  config = checkpoint.stored_config(checkpoint.locate(teacher_run))
  write_run(tmp_path / "again", config)
  assert teacher.find(str(tmp_path / "again"), digest).read(mesh, "float32").digest == digest
  write_run(tmp_path / "other", config, seed=1)
  with pytest.raises(ValueError, match="is not the one that this run learned from") as error:
    teacher.find(str(tmp_path / "other"), digest).read(mesh, "float32")
  assert "\n" not in str(error.value) and digest in str(error.value)


@pytest.mark.parametrize("format", ["safetensors", "hf"])
def test_an_export_with_heads_is_the_same_teacher(teacher_run, mesh, tmp_path, format):
  exporting.export(teacher_run, format, tmp_path / "out", heads=True)
  found = teacher.find(str(tmp_path / "out"))
  run = teacher.find(str(teacher_run))
  for head in ("dino", "ibot"):
    assert all(run.config[head][key] == value for key, value in found.config[head].items())
  np.testing.assert_allclose(found.config.crops.mean, (0.5, 0.4, 0.3))
  assert found.read(mesh, "float32").digest == run.read(mesh, "float32").digest


def test_what_cannot_teach(teacher_run, tmp_path):
  model = dinov3_jax.load(None, teacher_run)
  arrays = naming.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  save_file(arrays, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match="has no heads of DINO and iBOT") as error:
    teacher.find(str(tmp_path / "model.safetensors"))
  assert "\n" not in str(error.value)
  with pytest.raises(FileNotFoundError):
    teacher.find(str(tmp_path / "nowhere"))
  damaged = shutil.copytree(teacher_run, tmp_path / "damaged")
  shutil.rmtree(damaged / "checkpoints" / "1" / "config")
  with pytest.raises(native.DamagedCheckpoint):
    teacher.find(str(damaged))


@pytest.mark.parametrize("changes, message", [
  ({"dino.prototypes": 16}, "dino head has 32 prototypes, that of the student 16: set dino.proto"),
  ({"ibot.prototypes": 16}, "ibot head has 24 prototypes, that of the student 16: set ibot.proto"),
  ({"model.patch_size": 4}, "a patch of the student is 4 pixels wide and one of the teacher 8"),
  ({"gram.teacher": "ema"}, "gram.teacher='ema' does not go with distillation"),
  ({"distill.digest": "0123456789abcdef"}, "is not the one that this run learned from"),
  ({"distill.teacher": "", "distill.digest": "0123456789abcdef"},
   "distill.digest without a teacher: set distill.teacher"),
])
def test_what_does_not_go_with_a_teacher_is_a_line_before_a_step_is_traced(
    distill_config, tmp_path, monkeypatch, changes, message):
  monkeypatch.setattr(prepare, "traced_step", None)
  distill_config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError) as error:
    loop.prepare(distill_config, tmp_path / "run")
  assert message in str(error.value) and "\n" not in str(error.value)
  assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_teacher_that_has_changed_is_a_line(distill_config, teacher_run, tmp_path, monkeypatch):
  folder = shutil.copytree(teacher_run, tmp_path / "teacher")
  distill_config.distill.teacher = str(folder)
  run = loop.prepare(distill_config, tmp_path / "run")
  run.pipeline.close()
  write_run(tmp_path / "run", run.config)  # as if it had done a step
  monkeypatch.setattr(prepare, "traced_step", lambda *_: None)
  loop.prepare(distill_config, tmp_path / "run").pipeline.close()
  shutil.rmtree(folder / "checkpoints")
  write_run(folder, checkpoint.stored_config(checkpoint.locate(teacher_run)), seed=1)
  monkeypatch.setattr(prepare, "traced_step", None)
  with pytest.raises(ValueError, match="is not the one that this run learned from") as error:
    loop.prepare(distill_config, tmp_path / "run")
  assert "\n" not in str(error.value) and run.config.distill.digest in str(error.value)


def heads_config(images, callable, **options):
  """Three steps of heads on somebody else's network."""
  config = tiny_student(images, "")
  with config.unlocked():
    config.model = base.foreign(callable, 12, 8, **options)
  config.train.steps = 3
  config.schedules.lr.warmup_steps = config.schedules.teacher_temp.warmup_steps = 1
  return config


def test_heads_learn_on_a_function_and_teach(quick_images, distill_config, mesh, tmp_path):
  config = heads_config(quick_images, "tests.strangers:pixels")
  config.evals.update(every=3, image_size=16, picture_size=16)
  state = loop.train(config, tmp_path / "heads")
  assert not state.student["backbone"]
  born = jax.jit(lambda: init_state(config))()
  moved = jax.tree.map(lambda x, y: bool((x != y).any()), state.teacher, born.teacher)
  assert all(jax.tree.leaves(moved)) and len(jax.tree.leaves(moved)) == 14
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
  tokens = dinov3_jax.load(None, tmp_path / "heads")(images)
  np.testing.assert_allclose(tokens["cls"], strangers.pixels(images)[0], atol=1e-6)

  found = teacher.find(str(tmp_path / "heads"))
  batch = dict(global_crops=images.reshape(1, 2, 16, 16, 3))
  made = jax.jit(make_targets(distill_config, found.config))(
    found.read(mesh, "float32").params, batch)
  graphs, _ = abstract_modules(config)
  head = nnx.merge(graphs["ibot_head"], state.teacher["ibot_head"])
  expected = head.bottleneck(strangers.pixels(images)[1])
  np.testing.assert_allclose(made["patches"][0], expected, atol=1e-5)


def test_a_model_of_transformers_teaches_until_its_weights_change(quick_images, distill_config,
                                                                  tmp_path):
  path = strangers.save_dinov2(tmp_path / "dinov2")
  config = heads_config(quick_images, f"transformers:{path}", host=True)
  loop.train(config, tmp_path / "heads")
  stored = checkpoint.stored_config(checkpoint.latest(tmp_path / "heads"))
  assert stored.model.digest == callables.find(f"transformers:{path}").digest
  distill_config.distill.teacher = str(tmp_path / "heads")
  distill_config.train.steps = 3
  distill_config.schedules.lr.warmup_steps = 1
  distill_config.schedules.teacher_temp.warmup_steps = 1
  assert int(loop.train(distill_config, tmp_path / "student").step) == 3

  strangers.save_dinov2(path, seed=1)
  callables.find.cache_clear()
  with pytest.raises(ValueError, match="are not those that its heads were trained on") as error:
    loop.prepare(distill_config, tmp_path / "student")
  assert "\n" not in str(error.value)
  with pytest.raises(ValueError, match=r"was trained with model\.digest = ") as error:
    loop.prepare(config, tmp_path / "heads")
  assert "\n" not in str(error.value)


def test_a_foreign_backbone_has_no_weights_to_export(quick_images, tmp_path):
  config = heads_config(quick_images, "tests.strangers:pixels")
  write_run(tmp_path / "run", config)
  with pytest.raises(ValueError, match="is somebody else's network") as error:
    exporting.export(tmp_path / "run", "safetensors", tmp_path / "out")
  assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_convnext_learns_and_is_loadable_and_evaluated(distill_config, tmp_path):
  """On crops of two patches a side, which the teacher of patches of 8 sees at a quarter."""
  config = distill_config.copy_and_resolve_references()
  with config.unlocked():
    config.model = base.convnext((1, 1, 1, 1), (4, 8, 8, 12))
  config.crops.update(global_sizes=(64,), local_sizes=(32,))
  config.train.steps = 2
  config.schedules.lr.warmup_steps = config.schedules.teacher_temp.warmup_steps = 1
  state = loop.train(config, tmp_path)
  first = loop.train(config, tmp_path)  # which is done, and reads its state back
  jax.tree.map(np.testing.assert_array_equal, first, state)
  stored = checkpoint.stored_config(checkpoint.latest(tmp_path))
  assert stored.distill.teacher == config.distill.teacher and len(stored.distill.digest) == 16
  model = dinov3_jax.load(None, tmp_path)
  assert model(np.zeros((1, 64, 64, 3), np.float32))["patches"].shape == (1, 4, 12)
  student, average = state.student["backbone"], state.teacher["backbone"]
  assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (student, average))))
