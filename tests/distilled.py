"""Distillations recorded from the reference, and tiny ones to run."""

import functools
import json
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from dinov3_jax.models.variants import stride
from dinov3_jax.train import official, sharding
from dinov3_jax.train.state import init_state
from dinov3_jax.train.step import make_train_step
from dinov3_jax.train.targets import make_targets
from dinov3_jax.train.writer import Writer

GOLDEN = pathlib.Path(__file__).parent / "golden"


def settings_of(cfg, net, **options):
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "settings without effect")
    sizes = {key: value for key, value in net.items() if key != "ffn_ratio"}
    return official.config(cfg, **sizes, **options)


class Student:
  """One student of a recording.

  Attributes:
    record: `cfg`, `shapes`, `rows`, `digest`, `moved` and `groups`.
    config: its settings as ours.
    ranks: data shards of its batch.
  """

  def __init__(self, run: "Distillation", record: dict, net: dict, salt: str,
               mask_seeds: list[int], **options):
    self.record, self.salt, self._run, self._seeds = record, salt, run, mask_seeds
    self.ranks = len(mask_seeds)
    self.config = settings_of(record["cfg"], net, **options)

  @functools.cached_property
  def arrays(self) -> dict[str, np.ndarray]:
    """The parameters before the first step, by official name."""
    return {name: self._run.recipe.parameter(name, shape, self.salt)
            for name, shape in self.record["shapes"].items()}

  def state(self):
    """A new copy of the state before the first step."""
    return jax.tree.map(jnp.copy, official.distilled_state(self.config, self.arrays))

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """All images of a step, with this student's masks."""
    r = self._run.record
    arrays = self._run.collated(step, r["batch_seed"], r["B"])
    of_rank = [self._run.collated(step, seed, r["B"] // self.ranks)["masks"]
               for seed in self._seeds]
    by_crop = [masks.reshape(2, -1, masks.shape[-1]) for masks in of_rank]
    masks = np.concatenate(by_crop, axis=1).reshape(len(arrays["masks"]), -1)
    return official.batch(arrays | dict(masks=masks), self.ranks)

  @functools.cached_property
  def history(self):
    """The states before and after the recorded steps, and each step's metrics."""
    step = jax.jit(make_train_step(self.config), donate_argnums=0)
    state, first, metrics = self.state(), self.state(), []
    for row in self.record["rows"]:
      batch = self.batch(row["it"])
      state, values = step(state, batch | dict(targets=self._run.targets_of(self, row["it"])))
      metrics.append(jax.device_get(values))
    return jax.device_get(first), jax.device_get(state), metrics


class Distillation:
  """A recording: one frozen teacher and its students.

  Attributes:
    record: the file.
    students: by name; "student" where there is but one.
  """

  def __init__(self, name: str, recipe):
    self.record, self.recipe = json.loads((GOLDEN / f"trajectory_{name}.json").read_text()), recipe
    r = self.record
    self.teacher_config = settings_of(r["teacher_cfg"], r["teacher_net"])
    if "students" in r:
      self.students = {s["name"]: Student(self, s, s["net"], s["salt"], s["mask_seeds"],
                                          student=s["name"]) for s in r["students"]}
    else:
      self.students = {"student": Student(self, r, r["student_net"], r["salt"],
                                          [r["batch_seed"]])}

  def collated(self, step: int, seed: int, images: int) -> dict[str, np.ndarray]:
    """A batch in the reference's layout, its masks in cells as large as the students' patches."""
    r = self.record
    patch = stride(next(iter(self.students.values())).config.model)
    return self.recipe.batch(step, seed=seed, images=images, global_size=r["G"],
                             local_size=r["Lc"], locals_per_image=r["nl"], patch=patch)

  @functools.cached_property
  def teacher_arrays(self) -> dict[str, np.ndarray]:
    """The frozen teacher's parameters by official name."""
    return {name: self.recipe.parameter(name, shape, self.record["salt"])
            for name, shape in self.record["teacher_shapes"].items()}

  @functools.cached_property
  def teacher(self):
    """The frozen teacher's parameters."""
    return official.teacher_params(self.teacher_config, self.teacher_arrays)

  @functools.cached_property
  def _targets(self):
    any_student = next(iter(self.students.values())).config
    return jax.jit(make_targets(any_student, self.teacher_config))

  def targets_of(self, student: Student, step: int):
    """What the teacher makes of a step's images, which is the same for all students."""
    return self._targets(self.teacher, student.batch(step))


@pytest.fixture(scope="session")
def distillation(recipe):
  """`distillation(name)`: the recording `trajectory_NAME.json`; run once a session."""
  return functools.cache(lambda name: Distillation(name, recipe))


TINY = {
  "model.patch_size": 8, "model.width": 16, "model.depth": 1, "model.num_heads": 2,
  "model.mask_k_bias": True, "model.drop_path": 0.0,
  "dino.prototypes": 32, "dino.hidden": 16, "dino.bottleneck": 8,
  "ibot.prototypes": 24, "ibot.hidden": 16, "ibot.bottleneck": 8, "koleo.group": 4,
  "crops.global_sizes": (32,), "crops.local_sizes": (16,), "crops.locals": 2,
  "data.workers": 0, "train.steps": 4, "train.batch_size": 4, "train.dtype": "float32",
  "schedules.lr.warmup_steps": 2, "schedules.teacher_temp.warmup_steps": 2,
  "optim.freeze_last_layer_steps": 1, "log_every": 1, "checkpoint.every": 1, "checkpoint.keep": 4,
  "checkpoint.keep_every": 0, "evals.every": 0}


@pytest.fixture(scope="module")
def one_device():
  """Runs see the first device alone."""
  make_mesh = sharding.make_mesh
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "make_mesh",
                  lambda config, devices=None: make_mesh(config, devices or jax.devices()[:1]))
    yield


def write_run(folder, config, seed=0):
  """A run that has done a step, with parameters that no step made."""
  config = config.copy_and_resolve_references()
  config.seed = seed
  state = jax.jit(lambda: init_state(config))()
  with Writer(folder, keep=1, keep_every=0) as writer:
    assert writer.save(1, state.replace(step=jnp.int32(1)), {"step": 1}, config)
  return state


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory):
  """The folder of a run whose average can be distilled: wider, with heads of other sizes."""
  config = base.get_config()
  config.update_from_flattened_dict(TINY | {
    "model.width": 24, "model.num_heads": 3, "dino.hidden": 20, "dino.bottleneck": 12,
    "ibot.bottleneck": 10, "crops.mean": (0.5, 0.4, 0.3)})
  folder = tmp_path_factory.mktemp("teacher")
  write_run(folder, config)
  return folder


def tiny_student(images, teacher):
  """Four steps of a tiny student that learns from the run `teacher`."""
  config = base.get_config()
  config.update_from_flattened_dict(TINY | {
    "data.source": images, "distill.teacher": str(teacher)})
  return config


def tiny_family(images, teacher):
  """The same of two students, `a` as `tiny_student`, and `b` narrower and at another rate."""
  config = tiny_student(images, teacher)
  with config.unlocked():
    config.students.a = dict(optim=dict(b2=config.optim.b2))
    config.students.b = dict(model=dict(width=8), schedules=dict(lr=base.constant(0.01)),
                             koleo=dict(weight=0.0))
  return config


@pytest.fixture
def distill_config(quick_images, teacher_run):
  return tiny_student(quick_images, teacher_run)


@pytest.fixture
def family_config(quick_images, teacher_run):
  return tiny_family(quick_images, teacher_run)
