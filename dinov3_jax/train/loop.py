"""The host side of training: batches in, steps, what happens beside them, and a clean end."""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov3_jax.data.crops import MultiCrop
from dinov3_jax.data.pipeline import Pipeline, make_pipeline
from dinov3_jax.data.sources import Source
from dinov3_jax.train import checkpoint, compiler, hooks, processes, sharding
from dinov3_jax.train.evaluation import Evaluation
from dinov3_jax.train.flops import CHIPS, flops_by_crops
from dinov3_jax.train.images import open_images
from dinov3_jax.train.state import TrainState, has_gram_teacher, init_state
from dinov3_jax.train.step import make_train_step

log = logging.getLogger(__name__)

Batch = dict[str, jax.Array]


@dataclasses.dataclass
class Run:
  """A run that is ready to start: everything is checked, and nothing compiled."""

  config: ConfigDict
  workdir: epath.Path
  source: Source
  pipeline: Pipeline
  mesh: Mesh
  abstract_state: TrainState
  train_step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
  first: tuple[Batch, Any] | None  # a batch on the devices, and the pipeline's position after it
  folder: epath.Path | None  # of the checkpoint that it goes on from
  profile: int = 0  # the first of the steps to trace; 0: none

  @property
  def start(self) -> int:
    """Steps done before."""
    return 0 if self.folder is None else int(self.folder.name)


def train(config: ConfigDict, workdir: epath.PathLike) -> TrainState:
  """Trains, or goes on where the run in `workdir` left off, and returns the last state."""
  return run(prepare(config, workdir))


def prepare(config: ConfigDict, workdir: epath.PathLike) -> Run:
  """Checks all that can be wrong with a run, before it costs anything.

  Raises:
    ValueError: settings that do not fit together, a source that cannot be opened, a checkpoint of
      another architecture.
    OSError: a workdir that cannot be written, a checkpoint that is not there.
    TooManyDamaged: images that cannot be read.
  """
  workdir = epath.Path(workdir)
  check_settings(config)
  mesh = sharding.make_mesh(config)
  source = open_images(config, "train")
  pipeline = open_pipeline(config, source, mesh)
  check_writable(workdir)

  abstract_state = sharding.abstract_state(mesh, functools.partial(init_state, config))
  memory = mesh.local_devices[0].memory_stats() or {}
  sharding.check_memory(abstract_state, memory.get("bytes_limit"))
  folder = checkpoint.latest(workdir)
  if folder is None:
    checkpoint.check_start(config, abstract_state)
  else:
    checkpoint.check(folder, abstract_state, config)
    pipeline.set_state(checkpoint.stored_position(folder))

  first = fetch(pipeline, mesh)
  train_step = jit_step(config, mesh, abstract_state)
  train_step.trace(abstract_state, first[0])  # for its errors; the first step takes up the trace
  return Run(config, workdir, source, pipeline, mesh, abstract_state, train_step, first, folder)


def jit_step(config: ConfigDict, mesh: Mesh, abstract_state: TrainState) -> Callable:
  """The step as training compiles it for the devices of a mesh."""
  layout = jax.tree.map(lambda x: x.sharding, abstract_state)
  return jax.jit(make_train_step(config, mesh), donate_argnums=0, out_shardings=(layout, None),
                 compiler_options=compiler.options(mesh.devices.flat[0].platform))


def run(run: Run) -> TrainState:
  """Trains until the last step, or until Ctrl-C or SIGTERM, and saves the state.

  Raises:
    FloatingPointError: more than `config.train.max_skipped_steps` steps in a row were not finite.
    TooManyDamaged: from the pipeline.
  """
  config, last = run.config, run.config.train.steps
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(StopSignals())
    stack.callback(run.pipeline.close)
    if jax.process_index() == 0:
      save_config(config, run.workdir)
    describe(run)
    watching = [stack.enter_context(contextlib.closing(hook)) for hook in make_hooks(run)]
    writer = stack.enter_context(
      checkpoint.Writer(run.workdir, config.checkpoint.keep, config.checkpoint.keep_every))
    chip = CHIPS.get(jax.devices()[0].device_kind)
    interval = hooks.Interval(config.train.batch_size,
                              jax.device_count() / (chip.devices if chip else 1),
                              chip.flops if chip else None)
    flops = flops_by_crops(config, sharding.data_shards(run.mesh))
    skipped = SkippedSteps(config.train.max_skipped_steps)
    clock = time.perf_counter

    born, stopped = clock(), 0
    state = first_state(run)
    (batch, position), run.first = run.first, None
    for step in range(run.start + 1, last + 1):
      sides = tuple(batch[name].shape[2] if name in batch else 0
                    for name in ("global_crops", "local_crops", "gram_crops"))
      state, metrics = run.train_step(state, batch)
      began = clock()
      following = fetch(run.pipeline, run.mesh) if step < last else (None, None)
      interval.add(metrics, waited=clock() - began, flops=flops[sides])
      skipped(step, metrics)
      if step == run.start + 1:
        jax.block_until_ready(metrics)
        log.info("compiled, and did the first step, in %.1f s", clock() - born)
        interval.restart_clock()  # compiling is no measure of speed

      values = interval.means() if step % config.log_every == 0 or step == last else {}
      began = clock()
      for hook in watching:
        hook(step, state, values)
      # Processes must not part: with several, a signal waits for a step at which all ask for it.
      if jax.process_count() == 1:
        stopped = stop.number
      elif step % config.log_every == 0:
        stopped = processes.greatest(stop.number)
      ending = step == last or stopped
      if step % config.checkpoint.every == 0 or ending:
        writer.save(step, state, position, config)
      if ending:
        break
      interval.exclude(clock() - began)
      batch, position = following
    skipped.close()
  done = int(state.step)
  if done < last:
    log.info("stopped by %s after step %d; the same command goes on from there",
             signal.Signals(stopped).name, done)
  else:
    log.info("%s has its %d steps", run.workdir, done)
  return state


def describe(run: Run):
  """Logs what is about to be trained, on what."""
  count = sum(x.size for x in jax.tree.leaves(run.abstract_state.student["backbone"]))
  device = jax.devices()[0].device_kind
  log.info("a backbone of %s parameters on %s images, batch %d, on %d x %s", f"{count:,}",
           f"{len(run.source):,}", run.config.train.batch_size, jax.device_count(), device)


def first_state(run: Run) -> TrainState:
  """The state to go on from: restored, or fresh with every array born on its own shard."""
  if run.folder is not None:
    log.info("going on from %s", run.folder)
    for change in checkpoint.changes(run.folder, run.config):
      log.info("changed since then: %s", change)
    return checkpoint.restore(run.folder, run.abstract_state)
  layout = jax.tree.map(lambda x: x.sharding, run.abstract_state)
  state = jax.jit(functools.partial(init_state, run.config), out_shardings=layout)()
  return checkpoint.start(run.config, state)


def fetch(pipeline: Pipeline, mesh: Mesh) -> tuple[Batch, Any]:
  """The next batch, on its way to the devices, and the pipeline's position after it."""
  return sharding.place_batch(next(pipeline), mesh), pipeline.get_state()


def open_pipeline(config: ConfigDict, source: Source, mesh: Mesh) -> Pipeline:
  """The stream of batches that the config describes, of them this process's share."""
  crops, masks = config.crops, config.masks
  shared = ("locals", "global_scale", "local_scale", "horizontal_flip", "color_strength",
            "share_color_jitter", "locals_from_globals", "gram_distortions")
  multi_crops = [
    MultiCrop(*sizes, patch_size=config.model.patch_size, **{key: crops[key] for key in shared})
    for sizes in zip(crops.global_sizes, crops.local_sizes, crops.gram_sizes)]
  return make_pipeline(
    source, multi_crops, crops.size_weights, config.train.batch_size,
    shards=sharding.data_shards(mesh), local_shards=sharding.local_shards(mesh),
    seed=config.seed, workers=config.data.workers, mask_probability=masks.probability,
    mask_ratio=masks.ratio, mask_circular_shift=masks.circular_shift,
    max_damaged=config.data.max_damaged)


def make_hooks(run: Run) -> list[hooks.Hook]:
  """What watches the run; the evaluation comes first, for the others write down what it finds."""
  config, images = run.config, run.config.train.batch_size
  watching = []
  if config.evals.every:
    try:
      held_out = open_images(config, "val")
    except ValueError as error:
      log.info("no evaluation: %s", error)
    else:
      watching.append(Evaluation(config, run.workdir, run.mesh, run.source, held_out))
  if jax.process_index() == 0:
    watching += [hooks.progress(config.train.steps, images, run.start),
                 hooks.JsonLines(run.workdir / "metrics.jsonl", run.start),
                 hooks.TensorBoard(run.workdir / "tensorboard", run.start)]
  if run.profile:
    watching.append(hooks.Profile(run.workdir / "profile", run.profile))
  return watching


def check_settings(config: ConfigDict):
  """Raises a ValueError for settings that no other part of the code would refuse in time."""
  crops, patch = config.crops, config.model.patch_size
  for key in ("train.steps", "train.batch_size", "log_every", "checkpoint.every",
              "checkpoint.keep"):
    if functools.reduce(getattr, key.split("."), config) < 1:
      raise ValueError(f"{key} must be at least 1")
  if config.train.dtype not in ("float32", "bfloat16", "float16"):
    raise ValueError("train.dtype must be float32, bfloat16 or float16, "
                     f"not {config.train.dtype!r}")
  lists = ("global_sizes", "local_sizes", "gram_sizes", "size_weights")
  if len({len(crops[key]) for key in lists}) > 1:
    raise ValueError(f"crops.{', '.join(lists)} must be of one length, an entry a resolution")
  for key in lists[:3]:
    if not all(isinstance(size, int) for size in crops[key]):
      raise ValueError(f"crops.{key} must be whole numbers of pixels, not {tuple(crops[key])}")
  if {size > 0 for size in crops.gram_sizes} != {has_gram_teacher(config)}:
    raise ValueError(f"gram.teacher={config.gram.teacher!r} does not go with crops.gram_sizes="
                     f"{tuple(crops.gram_sizes)}: a teacher of its own needs sizes above 0, no "
                     "other reads them")
  for key in ("image_size", "picture_size"):
    if config.evals.every and config.evals[key] % patch:
      raise ValueError(f"evals.{key} {config.evals[key]} is not a multiple of the patch size "
                       f"{patch}")


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


def save_config(config: ConfigDict, workdir: epath.Path):
  """Writes the settings, with every override, where a person looks for them."""
  new = workdir / "config.json.new"
  new.write_text(json.dumps(json.loads(config.to_json()), indent=2) + "\n")
  new.replace(workdir / "config.json")


class SkippedSteps:
  """Counts steps in a row that were not finite.

  It looks at a step once the next one is under way, so that the devices never wait for the answer.
  """

  def __init__(self, forgiven: int):
    self._forgiven, self._count, self._late = forgiven, 0, None

  def __call__(self, step: int, metrics: dict[str, jax.Array]):
    self._look()
    self._late = step, metrics["skipped"]

  def close(self):
    self._look()

  def _look(self):
    if self._late is None:
      return
    (step, skipped), self._late = self._late, None
    if not skipped:
      self._count = 0
      return
    self._count += 1
    log.warning("step %d was not finite and changed nothing", step)
    if self._count > self._forgiven:
      raise FloatingPointError(
        f"step {step} is number {self._count} in a row whose loss or gradient is not finite; "
        "the checkpoints before it are good: lower the learning rate, or look at the data")


class StopSignals:
  """Lets Ctrl-C and SIGTERM end training in time; the same signal again kills at once.

  `number` is that of the signal, 0 without one.
  """

  def __enter__(self):
    self.number, self._former = 0, {}
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._former[number] = signal.signal(number, self._handle)
    return self

  def _handle(self, number, frame):
    self.number = number
    signal.signal(number, signal.SIG_DFL)
    os.write(2, b"\nsaving, then stopping; once more to stop at once, without saving\n")

  def __exit__(self, *_):
    for number, handler in self._former.items():
      signal.signal(number, handler)
