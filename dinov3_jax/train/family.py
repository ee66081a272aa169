"""Several students of one teacher in one run: its targets are computed once, and serve them all."""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov3_jax.costs.flops import StepFlops, crop_sides, flops_by_crops
from dinov3_jax.data.pipeline import Pipeline
from dinov3_jax.models.variants import stride
from dinov3_jax.train import checkpoint, origin, processes, sharding
from dinov3_jax.train import prepare as one
from dinov3_jax.train.checkpoint import DamagedCheckpoint
from dinov3_jax.train.images import open_images
from dinov3_jax.train.inputs import Batch, fetch, open_general, open_held_out, open_pipeline
from dinov3_jax.train.prepare import Run
from dinov3_jax.train.settings import check_settings
from dinov3_jax.train.state import Params
from dinov3_jax.train.targets import check_student
from dinov3_jax.train.teacher import Teacher
from dinov3_jax.train.teacher import find as find_teacher

log = logging.getLogger(__name__)

OWN = ("model", "dino", "ibot", "koleo", "schedules", "optim")  # sections of a student's own
STUDENTS = "students"  # in the position that checkpoints keep: who else was there


@dataclasses.dataclass
class Family:
  """Students that are ready to start together; each is a run of its own in all but the data.

  Attributes:
    runs: of the students, which share the pipeline, the mesh and the first batch.
    workdir: the folder with theirs.
    first, teacher, targets, stopped: see `Run`.
  """

  runs: list[Run]
  workdir: epath.Path
  pipeline: Pipeline
  mesh: Mesh
  first: tuple[Batch, Any] | None
  teacher: Teacher
  targets: Callable[[Params, Batch], Batch]
  stopped: int = 0

  def with_targets(self, batch: Batch) -> Batch:
    """A batch with the targets that all students take."""
    return one.with_targets(batch, self.teacher, self.targets)

  def flops(self, batch: Batch) -> StepFlops:
    """The operations of a step of all students on a batch."""
    return self._flops[crop_sides(batch)]

  @functools.cached_property
  def _flops(self) -> dict[tuple[int, int, int], StepFlops]:
    return flops_by_crops([run.config for run in self.runs], sharding.data_shards(self.mesh),
                          self.teacher.config)

  def position(self, position: Any, active: Sequence[Run]) -> Any:
    """The position in the data stream, and who took the batch before it: those that have steps
    left."""
    return position | {STUDENTS: [run.workdir.name for run in active]}

  def restore(self):
    """Reads the states of all students at the step where they were last together.

    Raises:
      DamagedCheckpoint: a student has checkpoints, but none is whole.
    """
    while True:
      damaged = [error for run in self.runs if (error := _read(run)) is not None]
      if not damaged:
        break
      for run in self.runs:
        run.restored = None
      position = choose(self.runs, damaged)
      self.pipeline.set_state(position or {"step": 0})
      self.first = fetch(self.pipeline, self.mesh)
    if jax.process_index() == 0:
      for run in self.runs:
        _clear_the_way(run)
    if jax.process_count() > 1:
      processes.greatest(0)  # nobody writes before that is done


@dataclasses.dataclass(frozen=True)
class Stored:
  """A checkpoint of one student.

  Attributes:
    folder: its own.
    batches: given by the data stream before it.
    students: by name, those that were trained with it.
  """

  folder: epath.Path
  batches: int
  students: frozenset[str]


def members(config: ConfigDict) -> dict[str, ConfigDict]:
  """The settings of each student by name: those of all, with the sections of its own.

  Raises:
    ValueError: a name that is no folder's, a section that cannot be a student's own, a setting that
      there is not; or from `check_settings`.
  """
  result = {}
  for name, own in config.students.items():
    if not re.fullmatch(r"\w[\w.+-]*", name) or name == checkpoint.FOLDER:
      raise ValueError(f"students.{name}: the name is that of a folder, and must be letters, "
                       "digits and any of .+-_")
    shared = [section for section in own if section not in OWN]
    if shared:
      raise ValueError(f"students.{name}.{shared[0]} is the same for all students: set {shared[0]} "
                       f"alone; their own are {', '.join(OWN)}")
    result[name] = _member(config, name, own)
  return result


def _member(config: ConfigDict, name: str, own: ConfigDict) -> ConfigDict:
  each = config.copy_and_resolve_references()
  with each.unlocked():
    each.students = ConfigDict()
    if "model" in own and ("depths" in own.model or "depths" in each.model):
      each.model = ConfigDict()  # of another kind
  try:
    with each.model.unlocked() if not each.model else each.ignore_type():
      each.update(own.to_dict())
    each.lock()
    check_settings(each)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    reason = " ".join(str(error.args[0] if error.args else error).split())
    raise ValueError(f"students.{name}: {reason}") from error
  return each


def prepare(config: ConfigDict, workdir: epath.PathLike, profile: int = 0) -> Run | Family:
  """Checks all that can be wrong with a run, or with a family of students (`config.students`).

  Arguments and errors as `prepare.prepare`; of a family each student's line names it.
  """
  if not list(config.students.keys()):
    return one.prepare(config, workdir, profile)
  workdir = epath.Path(workdir).expanduser()
  configs = members(config)
  shared = next(iter(configs.values()))
  found = find_teacher(**config.distill.to_dict())
  check_family(configs, found.config)
  mesh = sharding.make_mesh(shared)
  source = open_images(shared, "train")
  pipeline = open_pipeline(shared, source, mesh)
  for folder in (workdir, *(workdir / name for name in configs)):
    one.check_writable(folder)
    if jax.process_index() == 0:
      with one.lock(folder):
        pass

  held_out, general = open_held_out(shared), open_general(shared)
  runs = [Run(each, workdir / name, source, held_out, pipeline, mesh,
              sharding.abstract_state(mesh, functools.partial(one.init_state, each)), None, None,
              None, [], general=general) for name, each in configs.items()]
  one.check_memory(mesh, shared, [run.abstract_state for run in runs], found)
  position = choose(runs)
  if position is not None:
    pipeline.set_state(position)
  for run in runs:
    if run.folder is None:
      origin.check(run.config, run.abstract_state)
  teacher, targets = one.read_teacher(found, shared, mesh, [run.folder for run in runs])
  first = fetch(pipeline, mesh)
  for run in runs:
    run.config, run.teacher = one.with_digest(run.config, teacher), teacher
    run.train_step = one.traced_step(run.config, mesh, run.abstract_state, first[0], teacher,
                                     targets)
  runs[0].profile = profile
  return Family(runs, workdir, pipeline, mesh, first, teacher, targets)


def check_family(configs: Mapping[str, ConfigDict], teacher: ConfigDict):
  """Raises a ValueError, one line, for students that cannot learn from a teacher together."""
  for name, each in configs.items():
    check_student(each, teacher, name)
  by_stride = {}
  for name, each in configs.items():
    by_stride.setdefault(stride(each.model), name)
  if len(by_stride) > 1:
    (small, a), (large, b), *_ = sorted(by_stride.items())
    raise ValueError(f"{a} has patches of {small} pixels and {b} of {large}, and the teacher sees "
                     "every image once, on one grid: make a family of each kind")


def choose(runs: list[Run], damaged: Iterable[DamagedCheckpoint] = ()) -> Any:
  """Sets the checkpoint that each student goes on from, and returns the position in the data.

  Args:
    runs: of the students; `folder` and `damaged` are set.
    damaged: what was found out meanwhile.

  Raises:
    ValueError: a checkpoint does not fit the settings, or has more steps.
    DamagedCheckpoint: a student has checkpoints, but none is whole.
  """
  bad = {error.folder: error for error in damaged}
  bad |= {error.folder: error for run in runs for error in run.damaged}
  while True:
    stored, done = {}, set()
    for run in runs:
      name = run.workdir.name
      stored[name] = _stored(run, bad)
      if any(int(entry.folder.name) >= run.config.train.steps for entry in stored[name]):
        done.add(name)
    chosen = meet(stored, done)
    for run in runs:
      entry = chosen[run.workdir.name]
      run.folder = entry and entry.folder
      try:
        if run.folder is not None:
          checkpoint.check(run.folder, run.abstract_state, run.config)
          one.check_steps(run.folder, run.workdir, run.config)
      except DamagedCheckpoint as error:
        bad[run.folder] = error
        break
    else:
      break
  for run in runs:
    own = run.workdir.resolve()  # as the folders of checkpoints are
    run.damaged = [error for folder, error in bad.items() if folder.parent.parent == own]
  most = max((entry.batches for entry in chosen.values() if entry), default=None)
  return most and {"step": most}


def meet(stored: Mapping[str, list[Stored]], done: Collection[str] = ()
         ) -> dict[str, Stored | None]:
  """Which checkpoint each student should go on from, so that none does what it has done.

  All that were trained together at the newest of all checkpoints go on from there. Where one of
  them has none there, for its process was killed before it was written, all go back to one that
  they share. Whoever was not among them goes on from its own newest one before that, and whoever
  has none begins.

  Args:
    stored: by student, its whole checkpoints.
    done: students that have done all their steps. Earlier versions named them in checkpoints of the
      others that were made later, where they have none.

  Returns:
    By student; None begins.
  """
  newest = sorted({entry.batches for entries in stored.values() for entry in entries},
                  reverse=True)
  for batches in newest:
    there = {name: entry for name, entries in stored.items() for entry in entries
             if entry.batches == batches}
    expected = frozenset().union(*(entry.students for entry in there.values()))
    expected = expected & stored.keys() - set(done)
    if expected <= there.keys():
      before = {name: max((entry for entry in entries if entry.batches <= batches),
                          key=lambda entry: entry.batches, default=None)
                for name, entries in stored.items()}
      return before | there
  return dict.fromkeys(stored)


def _stored(run: Run, bad: dict[epath.Path, DamagedCheckpoint]) -> list[Stored]:
  result, folders = [], checkpoint.newest_first(run.workdir)
  for folder in folders:
    if folder in bad:
      continue
    try:
      position = checkpoint.stored_position(folder)
      result.append(Stored(folder, int(position["step"]), frozenset(
        position.get(STUDENTS, [run.workdir.name]))))
    except DamagedCheckpoint as error:
      bad[folder] = error
  if folders and not result:
    raise one.none_is_whole([bad[folder] for folder in folders])
  return result


def _read(run: Run) -> DamagedCheckpoint | None:
  """Reads a student's state; what is wrong with it, if anything."""
  failed = None
  try:
    if run.folder is not None:
      run.restored = checkpoint.restore(run.folder, run.abstract_state,
                                        run.config.checkpoint.verify)
  except DamagedCheckpoint as error:
    failed = error
  if jax.process_count() > 1 and processes.greatest(int(failed is not None)) and failed is None:
    failed = DamagedCheckpoint(run.folder, "another process cannot read it")
  return failed


def _clear_the_way(run: Run):
  """Sets aside what is damaged, and what is newer than the checkpoint that is gone on from."""
  for error in run.damaged:
    log.error("%s; it is left aside as %s", error, one.set_aside(error.folder))
  run.damaged = []
  for folder in checkpoint.newest_first(run.workdir):
    if run.folder is not None and int(folder.name) > run.start:
      log.warning("%s has no counterpart of the other students; it is left aside as %s, and its "
                  "steps are done again", folder, one.set_aside(folder, "ahead"))
