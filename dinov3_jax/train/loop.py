"""The host side of training: batches in, steps, what happens beside them, and a clean end."""

import contextlib
import json
import logging
import signal
import time
from collections.abc import Callable

import jax
from etils import epath
from ml_collections import ConfigDict

from dinov3_jax import console, signals
from dinov3_jax.data.durable import write_text
from dinov3_jax.train import checkpoint, compiler, processes
from dinov3_jax.train.best import Best
from dinov3_jax.train.course import Course, Pause
from dinov3_jax.train.family import Family, prepare
from dinov3_jax.train.inputs import fetch
from dinov3_jax.train.prepare import Run, lock, restore
from dinov3_jax.train.stability import Stability
from dinov3_jax.train.state import TrainState
from dinov3_jax.train.watching import make_watching
from dinov3_jax.train.writer import Writer

log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: epath.PathLike, profile: int = 0,
          prepare: Callable[..., Run | Family] = prepare) -> TrainState | dict[str, TrainState]:
  """Trains, or goes on where the run in `workdir` left off, and returns what `run` returns.

  Where nobody has set up logging, progress is printed; compiled programs are kept in a cache.

  Args:
    config: the settings.
    workdir: the run's folder; `~` is one's home.
    profile: the first step to trace; 0: none.
    prepare: what makes a run of these; by default it pretrains or distils.

  Raises:
    ValueError, OSError, TooManyDamaged: from `prepare`; OSError, TooManyDamaged and
      FloatingPointError: from `run`.
  """
  console.set_up_unless_done()
  compiler.keep_programs()
  return run(prepare(config, workdir, profile))


def run(run: Run | Family) -> TrainState | dict[str, TrainState]:
  """Trains until the last step, or until Ctrl-C, SIGTERM or SIGHUP, and saves the state.

  Whatever else ends it on the host's side, such as data that cannot be read any more, is raised
  after the state was saved. `run.stopped` is the number of the signal that ended it.

  Returns:
    The last state; of a family, those of all students by name.

  Raises:
    FloatingPointError: more than `config.train.max_skipped_steps` steps in a row were not finite,
      or the run has ended far outside its past.
    TooManyDamaged, OSError: from the pipeline.
    OSError: the last state cannot be written, or with `checkpoint.on_error=stop`, any.
    Locked: another process trains in the run's folder.
    DamagedCheckpoint: there are checkpoints, but none is whole.
  """
  runs = run.runs if isinstance(run, Family) else [run]
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(signals.Noted(
      "saving, then stopping; once more to stop at once, without saving"))
    if jax.process_index() == 0:
      for folder in dict.fromkeys([run.workdir, *(each.workdir for each in runs)]):
        stack.enter_context(lock(folder))
    stack.callback(run.pipeline.close)
    born = time.perf_counter()
    if isinstance(run, Family):
      run.restore()
    courses = [start(each, stack) for each in runs]
    failure = steps(run, courses, stop, born)
  for course in courses:
    tell_end(course, run.stopped, failure)
  failure = failure or next(filter(None, (course.writer.failed for course in courses)), None)
  if failure is not None:
    raise failure
  if isinstance(run, Family):
    return {each.workdir.name: course.state for each, course in zip(runs, courses)}
  return courses[0].state


def start(run: Run, stack: contextlib.ExitStack) -> Course:
  """A run at its first step, or where it was stopped."""
  state = first_state(run)
  log.info("%s, batch %d, on %d x %s", run.describe(), run.config.train.batch_size,
           jax.device_count(), jax.devices()[0].device_kind)
  watching, past = make_watching(run)
  stack.enter_context(contextlib.closing(watching))
  if jax.process_index() == 0:
    save_config(run.config, run.workdir)
  settings = run.config.checkpoint
  writer = stack.enter_context(Writer(
    run.workdir, settings.keep, settings.keep_every, verify=settings.verify,
    stop_on_error=settings.on_error == "stop"))
  return Course(run, state, watching, writer, Stability(run.config.train.max_skipped_steps, past),
                Best(run.config.evals.best, run.workdir, writer, past))


def steps(run: Run | Family, courses: list[Course], stop: signals.Noted, born: float
          ) -> Exception | None:
  """All steps, each of them one of every course on the same batch; what ended them early, if so."""
  clock = time.perf_counter
  failure, is_first = None, True
  (batch, position), run.first = run.first, None
  active = [course for course in courses if not course.is_done]
  while active and failure is None and not run.stopped:
    flops = run.flops(batch)
    batch = run.with_targets(batch)
    for course in active:
      course.take_step(batch)
    began, following = clock(), (None, None)
    last = all(course.is_done for course in active)
    try:
      following = (None, None) if last else fetch(run.pipeline, run.mesh)
    except Exception as error:  # the states are good, whatever has become of the data
      failure = error
    waited = clock() - began
    broken = {}
    for course in active:
      with noted(course, broken):
        course.look(waited, flops)
    if is_first:
      for course in active:
        course.wait()
      log.info("compiled, and did the first step, in %.1f s", clock() - born)
      for course in active:
        course.interval.restart_clock()  # compiling is no measure of speed
      is_first = False

    whole = [course for course in active if course not in broken]
    where = run.position(position, [course.run for course in active])
    for course in whole:
      course.measure()
    with Pause(active):
      for course in whole:
        course.record()
      run.stopped, timed = agree(active, stop)
      ending = bool(run.stopped or broken) or failure is not None
      for course in whole:
        with noted(course, broken):
          course.save_and_observe(where, timed, ending or course.is_done)
      if not ending and jax.process_count() == 1 and stop.number and not last:
        run.stopped = stop.number  # it came while that was done
      if (run.stopped or broken) and not ending:
        for course in whole:
          if course not in broken and not course.is_done:
            with noted(course, broken):
              course.save_at_once(where)
    failure = failure or next(iter(broken.values()), None)
    for course in active:
      if (course.is_done or run.stopped) and course.saving_is_due and failure is None:
        failure = course.not_saved()
    active = [course for course in active if not course.is_done]
    batch, position = following
  for course in courses:
    course.writer.wait()
  return failure


@contextlib.contextmanager
def noted(course: Course, broken: dict[Course, Exception]):
  """Notes the error that ends a run, so that those beside it can be saved first."""
  try:
    yield
  except (FloatingPointError, OSError) as error:
    course.saving_is_due = True
    broken[course] = error


def agree(courses: list[Course], stop: signals.Noted) -> tuple[int, bool]:
  """The signal that asks to stop, 0 without, and whether a checkpoint is due by time.

  Processes must not part: with several, both wait for a step that logs, at which all ask for it.
  """
  minutes = courses[0].run.config.checkpoint.minutes
  timed = bool(minutes) and max(course.writer.seconds for course in courses) >= 60 * minutes
  if jax.process_count() == 1:
    return stop.number, timed
  if not any(course.logs for course in courses):
    return 0, False
  both = processes.greatest(2 * stop.number + timed)
  return both // 2, bool(both % 2)


def tell_end(course: Course, stopped: int, failure: Exception | None):
  """Logs how a run has ended."""
  if failure is not None:
    if not course.saving_is_due and course.writer.failed is None:
      log.info("the state after step %d is saved; the same command goes on from there",
               course.step)
  elif stopped and not course.is_done:
    log.info("stopped by %s after step %d; the same command goes on from there",
             signal.Signals(stopped).name, course.step)
  else:
    log.info("%s has its %d steps", course.run.workdir, course.step)


def first_state(run: Run) -> TrainState:
  """The state to go on from: restored, or fresh."""
  if run.folder is not None:
    state, run.restored = restore(run) if run.restored is None else run.restored, None
    log.info("going on from %s", run.folder)
    for change in checkpoint.changes(run.folder, run.config):
      log.info("changed since then: %s", change)
    return state
  return run.fresh_state()


def save_config(config: ConfigDict, workdir: epath.Path):
  """Writes the settings, with every override, where a person looks for them."""
  try:
    write_text(workdir / "config.json", json.dumps(json.loads(config.to_json()), indent=2) + "\n")
  except OSError as error:  # every checkpoint has them, too
    log.warning("config.json cannot be written: %s", error.strerror or error)
