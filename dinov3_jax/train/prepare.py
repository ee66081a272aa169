"""Everything that can be wrong with a run, checked before it costs anything."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov3_jax.costs.flops import StepFlops, crop_sides, flops_by_crops
from dinov3_jax.data.lock import FolderLock
from dinov3_jax.data.pipeline import Pipeline
from dinov3_jax.data.sources import Source
from dinov3_jax.models import foreign
from dinov3_jax.train import checkpoint, compiler, origin, processes, sharding
from dinov3_jax.train.checkpoint import DamagedCheckpoint
from dinov3_jax.train.hooks import Hook
from dinov3_jax.train.images import open_images
from dinov3_jax.train.inputs import Batch, fetch, open_general, open_held_out, open_pipeline
from dinov3_jax.train.settings import check_settings
from dinov3_jax.train.state import Params, TrainState, init_state
from dinov3_jax.train.step import make_train_step
from dinov3_jax.train.targets import check_student, make_targets
from dinov3_jax.train.teacher import Found, Teacher
from dinov3_jax.train.teacher import find as find_teacher
from dinov3_jax.train.watching import observers

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Run:
  """A run that is ready to start: everything is checked, and nothing compiled.

  It is all that the loop knows of what is trained: a fresh state, a step, a stream of batches, and
  what observes the state. This one pretrains; a run of another objective has its own `train_step`
  and other methods.

  Attributes:
    held_out: the images of its evaluations, None without any.
    general: training and held-out images of a second source to evaluate, None without.
    first: a batch on the devices, and the pipeline's position after it.
    folder: of the checkpoint that it goes on from, None for a fresh start.
    damaged: newer checkpoints that cannot be trusted.
    profile: the first of the steps to trace; 0: none.
    teacher: the frozen one that it learns from; None: an average of its own.
    targets: what that teacher makes of a batch; None without one.
    restored: the state to go on from, where it has been read already.
    stopped: the number of the signal that ended it; 0: none.
  """

  config: ConfigDict
  workdir: epath.Path
  source: Source
  held_out: Source | None
  pipeline: Pipeline
  mesh: Mesh
  abstract_state: TrainState
  train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
  first: tuple[Batch, Any] | None
  folder: epath.Path | None
  damaged: list[DamagedCheckpoint]
  profile: int = 0
  teacher: Teacher | None = None
  targets: Callable[[Params, Batch], Batch] | None = None
  restored: TrainState | None = None
  stopped: int = 0
  general: tuple[Source, Source] | None = None

  @property
  def start(self) -> int:
    """Steps done before."""
    return 0 if self.folder is None else int(self.folder.name)

  def fresh_state(self) -> TrainState:
    """The state before the first step, every array born on its own shard."""
    layout = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    state = jax.jit(functools.partial(init_state, self.config), out_shardings=layout)()
    return origin.start(self.config, state)

  def with_targets(self, batch: Batch) -> Batch:
    """A batch as the step takes it: with what the frozen teacher makes of it, if there is one."""
    return with_targets(batch, self.teacher, self.targets)

  def observers(self, last: dict[str, float]) -> dict[str, Callable[[], Hook]]:
    """What looks at the state beside the steps, by name; see `watching.observers`."""
    return observers(self, last)

  def flops(self, batch: Batch) -> StepFlops:
    """The operations of a step on a batch."""
    return self._flops[crop_sides(batch)]

  @functools.cached_property
  def _flops(self) -> dict[tuple[int, int, int], StepFlops]:
    return flops_by_crops([self.config], sharding.data_shards(self.mesh),
                          self.teacher and self.teacher.config)

  def describe(self) -> str:
    """What is about to be trained, in words."""
    count = sum(x.size for x in jax.tree.leaves(self.abstract_state.student["backbone"]))
    classes = f" of {len(self.source.classes):,} classes" if self.source.classes else ""
    held_out = f" ({len(self.held_out):,} held out)" if self.held_out is not None else ""
    return f"a backbone of {count:,} parameters on {len(self.source):,} images{classes}{held_out}"

  def position(self, position: Any, active: Sequence["Run"]) -> Any:
    """What a checkpoint should keep of the position in the data stream.

    Args:
      position: in the stream.
      active: the runs that took the batch before it.
    """
    return position


def prepare(config: ConfigDict, workdir: epath.PathLike, profile: int = 0) -> Run:
  """Checks all that can be wrong with a run.

  Args:
    config: the settings.
    workdir: the run's folder; `~` is one's home.
    profile: the first of the steps to trace; 0: none.

  Raises:
    ValueError: settings that do not fit together, a source that cannot be opened, a checkpoint of
      another architecture or of more steps than there shall be.
    OSError: a workdir that cannot be written or that another process trains in, a checkpoint that
      is not there, or none that is whole.
    TooManyDamaged: images that cannot be read.
  """
  workdir = epath.Path(workdir).expanduser()
  check_settings(config)
  config = with_backbone_digest(config)
  mesh = sharding.make_mesh(config)
  source = open_images(config, "train")
  pipeline, general = open_pipeline(config, source, mesh), open_general(config)
  check_writable(workdir)
  if jax.process_index() == 0:
    with lock(workdir):  # to refuse it now; the run takes it again
      pass

  found = find_teacher(**config.distill.to_dict())
  if found is not None:
    check_student(config, found.config)
  abstract_state = sharding.abstract_state(mesh, functools.partial(init_state, config))
  check_memory(mesh, config, [abstract_state], found)
  folder, position, damaged = find(config, workdir, abstract_state)
  if folder is None:
    origin.check(config, abstract_state)
  else:
    pipeline.set_state(position)

  teacher, targets = read_teacher(found, config, mesh, [folder])
  config = with_digest(config, teacher)
  first = fetch(pipeline, mesh)
  train_step = traced_step(config, mesh, abstract_state, first[0], teacher, targets)
  return Run(config, workdir, source, open_held_out(config), pipeline, mesh, abstract_state,
             train_step, first, folder, damaged, profile, teacher, targets, general=general)


def check_memory(mesh: Mesh, config: ConfigDict, states: list[TrainState], found: Found | None):
  """Raises a ValueError if the states, and the teacher, alone take more than the devices have."""
  memory = mesh.local_devices[0].memory_stats() or {}
  frozen = None if found is None else found.abstract(mesh, config.train.dtype)
  sharding.check_memory((states, frozen), memory.get("bytes_limit"))


def read_teacher(found: Found | None, config: ConfigDict, mesh: Mesh,
                 folders: list[epath.Path | None]
                 ) -> tuple[Teacher | None, Callable[[Params, Batch], Batch] | None]:
  """The frozen teacher, and the compiled function that makes targets of it; None without one.

  Args:
    found: of `config.distill`.
    config: of a run.
    mesh: of the devices.
    folders: of the checkpoints that are gone on from, which all must have learned from it.

  Raises:
    ValueError: it is not the teacher that a checkpoint or the settings name.
    OSError: it cannot be read.
  """
  if found is None:
    return None, None
  before = [checkpoint.stored_config(folder).get("distill", {}).get("digest", "")
            for folder in folders if folder is not None]
  found.expected = tuple(filter(None, [*found.expected, *before]))
  options = compiler.options(mesh.devices.flat[0])
  return found.read(mesh, config.train.dtype), jax.jit(
    make_targets(config, found.config, mesh), compiler_options=options)


def with_digest(config: ConfigDict, teacher: Teacher | None) -> ConfigDict:
  """The settings, with the digest of the teacher, as checkpoints keep them."""
  if teacher is None:
    return config
  config = config.copy_and_resolve_references()
  config.distill.digest = teacher.digest
  return config


def with_backbone_digest(config: ConfigDict) -> ConfigDict:
  """The settings, with the digest of a backbone that is somebody else's network.

  Raises:
    ValueError, ModuleNotFoundError: it does not do what the settings say of it.
  """
  if "callable" not in config.model:
    return config
  config = config.copy_and_resolve_references()
  config.model.digest = foreign.checked(config.model.to_dict())
  return config


def with_targets(batch: Batch, teacher: Teacher | None, targets: Callable | None) -> Batch:
  """A batch, and the targets of the teacher where there is one."""
  return batch if teacher is None else batch | dict(targets=targets(teacher.params, batch))


def traced_step(config: ConfigDict, mesh: Mesh, abstract_state: TrainState, batch: Batch,
                teacher: Teacher | None, targets: Callable | None) -> Callable:
  """The step, traced for its errors; the first step takes up the trace."""
  step = jit_step(config, mesh, abstract_state)
  if teacher is not None:
    batch = batch | dict(targets=jax.eval_shape(targets, teacher.params, batch))
  step.trace(abstract_state, batch)
  return step


def find(config: ConfigDict, workdir: epath.Path, abstract_state: TrainState,
         before: int | None = None) -> tuple[epath.Path | None, Any, list[DamagedCheckpoint]]:
  """The newest checkpoint to go on from, its arrays not read yet.

  Args:
    config: of the run.
    workdir: its folder.
    abstract_state: what the checkpoint must hold.
    before: only those of fewer steps; None: all.

  Returns:
    Its folder, and the position in the data stream (None for a run that has no checkpoint); and
    what is wrong with each newer one.

  Raises:
    ValueError: the newest whole one does not fit the config, or has more steps.
    DamagedCheckpoint: there are some, but none is whole.
  """
  damaged = []
  for folder in checkpoint.newest_first(workdir):
    if before is not None and int(folder.name) >= before:
      continue
    try:
      checkpoint.check(folder, abstract_state, config)
      position = checkpoint.stored_position(folder)
    except DamagedCheckpoint as error:
      damaged.append(error)
      continue
    check_steps(folder, workdir, config)
    return folder, position, damaged
  if damaged:
    raise none_is_whole(damaged)
  return None, None, damaged


def check_steps(folder: epath.Path, workdir: epath.Path, config: ConfigDict):
  """Raises a ValueError if a checkpoint has more steps than the run shall have."""
  if int(folder.name) > config.train.steps:
    raise ValueError(f"{workdir} has done {int(folder.name):,} steps, more than train.steps="
                     f"{config.train.steps:,}: set more, or choose another --workdir")


def none_is_whole(damaged: list[DamagedCheckpoint]) -> DamagedCheckpoint:
  """The error of a run all of whose checkpoints are damaged."""
  first = damaged[0]
  others = f" (nor are {len(damaged) - 1} older ones whole)" if len(damaged) > 1 else ""
  return DamagedCheckpoint(first.folder, f"{first.reason}{others}; to start anew, choose another "
                           "--workdir")


def restore(run: Run) -> TrainState:
  """The state that a run goes on from, of its newest checkpoint that is whole.

  Where that is not the newest one of all, the damaged ones are set aside under another name, and
  `run` starts from the older one.

  Raises:
    DamagedCheckpoint: none is whole.
  """
  while True:
    try:
      state, failed = checkpoint.restore(run.folder, run.abstract_state,
                                         run.config.checkpoint.verify), None
    except DamagedCheckpoint as error:
      state, failed = None, error
    if not (processes.greatest(int(failed is not None)) if jax.process_count() > 1 else failed):
      break
    failed = failed or DamagedCheckpoint(run.folder, "another process cannot read it")
    run.damaged.append(failed)
    try:
      run.folder, position, more = find(run.config, run.workdir, run.abstract_state, run.start)
    except DamagedCheckpoint as error:
      raise none_is_whole([*run.damaged, error]) from error
    if run.folder is None:
      raise none_is_whole(run.damaged)
    run.damaged += more
    run.pipeline.set_state(position)
    run.first = fetch(run.pipeline, run.mesh)
  if jax.process_index() == 0:
    for error in run.damaged:
      log.error("%s; it is left aside as %s, and the run goes on from step %d", error,
                set_aside(error.folder), run.start)
  if jax.process_count() > 1:
    processes.greatest(0)  # nobody writes before the damaged ones are out of the way
  run.damaged = []
  return state


def set_aside(folder: epath.Path, why: str = "damaged") -> str:
  """Gives a checkpoint another name, beside its own, and returns that."""
  name = aside = f"{folder.name}.{why}"
  count = 1
  while (folder.parent / aside).exists():
    count += 1
    aside = f"{name}-{count}"
  folder.rename(folder.parent / aside)
  return aside


def jit_step(config: ConfigDict, mesh: Mesh, abstract_state: TrainState,
             make: Callable | None = None) -> Callable:
  """The step that `make(config, mesh)` returns, by default pretraining's, as training compiles it
  for the devices of a mesh."""
  layout = jax.tree.map(lambda x: x.sharding, abstract_state)
  step = (make or make_train_step)(config, mesh)
  return jax.jit(step, donate_argnums=0, out_shardings=(layout, None),
                 compiler_options=compiler.options(mesh.devices.flat[0]))


def lock(workdir: epath.Path) -> FolderLock:
  """Keeps a second run out of a run's folder."""
  return FolderLock(workdir, "a training run")


def check_writable(workdir: epath.Path):
  """Raises an OSError that says what to do if files cannot be made in `workdir`."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / f".probe{jax.process_index()}"
    probe.write_text("")
    probe.unlink()
  except OSError as error:
    raise OSError(f"cannot write to {workdir} ({error.strerror or error}): choose another "
                  "--workdir") from error
