"""The host side of training: batches in, steps, what happens beside them, and a clean end."""

import contextlib
import functools
import json
import logging
import signal
import time
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from dinov3_jax import console, signals
from dinov3_jax.train import checkpoint, compiler, hooks, processes, sharding
from dinov3_jax.train.durable import write_text
from dinov3_jax.train.flops import CHIPS, flops_by_crops
from dinov3_jax.train.inputs import fetch
from dinov3_jax.train.prepare import Run, lock, prepare, restore
from dinov3_jax.train.stability import Stability
from dinov3_jax.train.state import TrainState, init_state
from dinov3_jax.train.watching import make_watching
from dinov3_jax.train.writer import Writer

log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: epath.PathLike, profile: int = 0) -> TrainState:
  """Trains, or goes on where the run in `workdir` left off, and returns the last state.

  Where nobody has set up logging, progress is printed; compiled programs are kept in a cache.

  Args:
    config: the settings.
    workdir: the run's folder; `~` is one's home.
    profile: the first step to trace; 0: none.

  Raises:
    ValueError, OSError, TooManyDamaged: from `prepare`; OSError, TooManyDamaged and
      FloatingPointError: from `run`.
  """
  console.set_up_unless_done()
  compiler.keep_programs()
  return run(prepare(config, workdir, profile))


def run(run: Run) -> TrainState:
  """Trains until the last step, or until Ctrl-C, SIGTERM or SIGHUP, and saves the state.

  Whatever else ends it on the host's side, such as data that cannot be read any more, is raised
  after the state was saved. `run.stopped` is the number of the signal that ended it.

  Raises:
    FloatingPointError: more than `config.train.max_skipped_steps` steps in a row were not finite,
      or the run has ended far outside its past.
    TooManyDamaged, OSError: from the pipeline.
    OSError: the last state cannot be written, or with `checkpoint.on_error=stop`, any.
    Locked: another process trains in the run's folder.
    DamagedCheckpoint: there are checkpoints, but none is whole.
  """
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(signals.Noted(
      "saving, then stopping; once more to stop at once, without saving"))
    if jax.process_index() == 0:
      stack.enter_context(lock(run.workdir))
    stack.callback(run.pipeline.close)
    settings = run.config.checkpoint
    born = time.perf_counter()
    state = first_state(run)
    describe(run)
    watching, past = make_watching(run)
    stack.enter_context(contextlib.closing(watching))
    if jax.process_index() == 0:
      save_config(run.config, run.workdir)
    writer = stack.enter_context(Writer(
      run.workdir, settings.keep, settings.keep_every, verify=settings.verify,
      stop_on_error=settings.on_error == "stop"))
    stability = Stability(run.config.train.max_skipped_steps, past)
    state, saved, failure = steps(run, state, stop, watching, writer, stability, born)
  tell_end(run, int(state.step), saved and writer.failed is None, failure or writer.failed)
  return state


def steps(run: Run, state: TrainState, stop: signals.Noted, watching, writer: Writer,
          stability: Stability, born: float) -> tuple[TrainState, bool, Exception | None]:
  """All steps of a run: the last state, whether it was saved, and what ended them early, if so."""
  config, last = run.config, run.config.train.steps
  clock = time.perf_counter
  interval = make_interval(config)
  flops = flops_by_crops(config, sharding.data_shards(run.mesh))
  failure, saving_is_due = None, False
  (batch, position), run.first = run.first, None
  watching.observe(run.start, state)  # of a restart, too, if it was killed before this was done
  for step in range(run.start + 1, last + 1):
    sides = tuple(batch[name].shape[2] if name in batch else 0
                  for name in ("global_crops", "local_crops", "gram_crops"))
    state, metrics = run.train_step(state, batch)
    began, following = clock(), None
    try:
      following = fetch(run.pipeline, run.mesh) if step < last else (None, None)
    except Exception as error:  # the state is good, whatever has become of the data
      failure = error
    interval.add(metrics, waited=clock() - began, flops=flops[sides])
    try:
      stability(step, metrics)
    except FloatingPointError as error:
      raise FloatingPointError(f"{error}; {advice(run, writer, stability)}") from None
    if step == run.start + 1:
      jax.block_until_ready(metrics)
      log.info("compiled, and did the first step, in %.1f s", clock() - born)
      interval.restart_clock()  # compiling is no measure of speed

    logs = step % config.log_every == 0
    values = interval.means() if logs or step == last else {}
    began = clock()
    watching.record(step, values)
    run.stopped, timed = agree(run, stop, writer, logs)
    ending = step == last or bool(run.stopped) or failure is not None
    saving_is_due |= step % config.checkpoint.every == 0 or timed or ending
    writer.poll()
    if saving_is_due:
      saving_is_due = not save(run, step, state, position, watching, writer, stability, ending)
    watching.observe(step, state)
    if not ending and jax.process_count() == 1 and stop.number:  # while that was done
      run.stopped, ending = stop.number, True
      saving_is_due = step not in writer.steps() and not save(
        run, step, state, position, watching, writer, stability, ending)
    if ending:
      if saving_is_due and failure is None:
        failure = FloatingPointError(
          f"the state after step {step} is not saved: since step {stability.since}, "
          f"{stability.why}; {advice(run, writer, stability)}")
      break
    interval.exclude(clock() - began)
    batch, position = following
  writer.wait()
  return state, not saving_is_due, failure


def save(run: Run, step: int, state: TrainState, position: Any, watching, writer: Writer,
         stability: Stability, ending: bool) -> bool:
  """Saves the state unless it is far outside its past; whether it did.

  At the end of a run only what has been outside for long is held back: one spike is no reason to
  lose the steps before it.
  """
  try:
    stability.look()
  except FloatingPointError as error:
    raise FloatingPointError(f"{error}; {advice(run, writer, stability)}") from None
  if stability.rising or (stability.since is not None and not ending):
    return False
  watching.flush()  # what was recorded up to a step outlives a kill if its checkpoint does
  return writer.save(step, state, position, run.config)


def agree(run: Run, stop: signals.Noted, writer: Writer, logs: bool) -> tuple[int, bool]:
  """The signal that asks to stop, 0 without, and whether a checkpoint is due by time.

  Processes must not part: with several, both wait for a step that logs, at which all ask for it.
  """
  minutes = run.config.checkpoint.minutes
  timed = bool(minutes) and writer.seconds >= 60 * minutes
  if jax.process_count() == 1:
    return stop.number, timed
  if not logs:
    return 0, False
  both = processes.greatest(2 * stop.number + timed)
  return both // 2, bool(both % 2)


def advice(run: Run, writer: Writer, stability: Stability) -> str:
  """What is known of the checkpoints of a run that no longer learns, and what to do."""
  before = [step for step in writer.steps() if stability.since is None or step < stability.since]
  newest = (f"the newest checkpoint from before step {stability.since} is "
            f"{run.workdir / checkpoint.FOLDER / str(before[-1])}" if before else
            "there is no checkpoint from before that")
  return f"{newest}: lower the learning rate, or look at the data"


def tell_end(run: Run, done: int, saved: bool, failure: Exception | None):
  """Logs how a run has ended, or raises the error that ended it."""
  if failure is not None:
    if saved:
      log.info("the state after step %d is saved; the same command goes on from there", done)
    raise failure
  if run.stopped:
    log.info("stopped by %s after step %d; the same command goes on from there",
             signal.Signals(run.stopped).name, done)
  else:
    log.info("%s has its %d steps", run.workdir, done)


def make_interval(config: ConfigDict) -> hooks.Interval:
  """What measures the speed on these devices."""
  chip = CHIPS.get(jax.devices()[0].device_kind)
  return hooks.Interval(config.train.batch_size,
                        jax.device_count() / (chip.devices if chip else 1),
                        chip.flops if chip else None)


def describe(run: Run):
  """Logs what is about to be trained, on what."""
  count = sum(x.size for x in jax.tree.leaves(run.abstract_state.student["backbone"]))
  device = jax.devices()[0].device_kind
  classes = f" of {len(run.source.classes):,} classes" if run.source.classes else ""
  held_out = f" ({len(run.held_out):,} held out)" if run.held_out is not None else ""
  log.info("a backbone of %s parameters on %s images%s%s, batch %d, on %d x %s", f"{count:,}",
           f"{len(run.source):,}", classes, held_out, run.config.train.batch_size,
           jax.device_count(), device)


def first_state(run: Run) -> TrainState:
  """The state to go on from: restored, or fresh with every array born on its own shard."""
  if run.folder is not None:
    state = restore(run)
    log.info("going on from %s", run.folder)
    for change in checkpoint.changes(run.folder, run.config):
      log.info("changed since then: %s", change)
    return state
  layout = jax.tree.map(lambda x: x.sharding, run.abstract_state)
  state = jax.jit(functools.partial(init_state, run.config), out_shardings=layout)()
  return checkpoint.start(run.config, state)


def save_config(config: ConfigDict, workdir: epath.Path):
  """Writes the settings, with every override, where a person looks for them."""
  try:
    write_text(workdir / "config.json", json.dumps(json.loads(config.to_json()), indent=2) + "\n")
  except OSError as error:  # every checkpoint has them, too
    log.warning("config.json cannot be written: %s", error.strerror or error)
