"""Distillations recorded from the reference, and what it takes to repeat them."""

import functools
import json
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.models.variants import stride
from dinov3_jax.train import official
from dinov3_jax.train.step import make_train_step
from dinov3_jax.train.targets import make_targets

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
