"""Everything that can be wrong with a run, checked before it costs anything."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov3_jax.data.lock import FolderLock
from dinov3_jax.data.pipeline import Pipeline
from dinov3_jax.data.sources import Source
from dinov3_jax.train import checkpoint, compiler, processes, sharding
from dinov3_jax.train.checkpoint import DamagedCheckpoint
from dinov3_jax.train.images import open_images
from dinov3_jax.train.inputs import Batch, fetch, open_held_out, open_pipeline
from dinov3_jax.train.settings import check_settings
from dinov3_jax.train.state import TrainState, init_state
from dinov3_jax.train.step import make_train_step

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Run:
  """A run that is ready to start: everything is checked, and nothing compiled.

  Attributes:
    held_out: the images of its evaluations, None without any.
    first: a batch on the devices, and the pipeline's position after it.
    folder: of the checkpoint that it goes on from, None for a fresh start.
    damaged: newer checkpoints that cannot be trusted.
    profile: the first of the steps to trace; 0: none.
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
  stopped: int = 0

  @property
  def start(self) -> int:
    """Steps done before."""
    return 0 if self.folder is None else int(self.folder.name)


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
  mesh = sharding.make_mesh(config)
  source = open_images(config, "train")
  pipeline = open_pipeline(config, source, mesh)
  check_writable(workdir)
  if jax.process_index() == 0:
    with lock(workdir):  # to refuse it now; the run takes it again
      pass

  abstract_state = sharding.abstract_state(mesh, functools.partial(init_state, config))
  memory = mesh.local_devices[0].memory_stats() or {}
  sharding.check_memory(abstract_state, memory.get("bytes_limit"))
  folder, position, damaged = find(config, workdir, abstract_state)
  if folder is None:
    checkpoint.check_start(config, abstract_state)
  else:
    pipeline.set_state(position)

  first = fetch(pipeline, mesh)
  train_step = jit_step(config, mesh, abstract_state)
  train_step.trace(abstract_state, first[0])  # for its errors; the first step takes up the trace
  return Run(config, workdir, source, open_held_out(config), pipeline, mesh, abstract_state,
             train_step, first, folder, damaged, profile)


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
    if int(folder.name) > config.train.steps:
      raise ValueError(f"{workdir} has done {int(folder.name):,} steps, more than train.steps="
                       f"{config.train.steps:,}: set more, or choose another --workdir")
    return folder, position, damaged
  if damaged:
    raise none_is_whole(damaged)
  return None, None, damaged


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
                _set_aside(error.folder), run.start)
  if jax.process_count() > 1:
    processes.greatest(0)  # nobody writes before the damaged ones are out of the way
  run.damaged = []
  return state


def _set_aside(folder: epath.Path) -> str:
  name = aside = f"{folder.name}.damaged"
  count = 1
  while (folder.parent / aside).exists():
    count += 1
    aside = f"{name}-{count}"
  folder.rename(folder.parent / aside)
  return aside


def jit_step(config: ConfigDict, mesh: Mesh, abstract_state: TrainState) -> Callable:
  """The step as training compiles it for the devices of a mesh."""
  layout = jax.tree.map(lambda x: x.sharding, abstract_state)
  return jax.jit(make_train_step(config, mesh), donate_argnums=0, out_shardings=(layout, None),
                 compiler_options=compiler.options(mesh.devices.flat[0].platform))


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
