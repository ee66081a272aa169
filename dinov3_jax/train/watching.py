"""What stands beside the step, none of which can end a run: logs, evaluations, pictures."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import jax

from dinov3_jax.data.sources import Source
from dinov3_jax.train import hooks
from dinov3_jax.train.evaluation import Evaluation
from dinov3_jax.train.health import Health
from dinov3_jax.train.state import TrainState
from dinov3_jax.train.tasks import Tasks

if TYPE_CHECKING:
  from dinov3_jax.train.prepare import Run

log = logging.getLogger(__name__)

GENERAL = "general/"  # before the names of what the second source's evaluation finds


class Watching:
  """Recorders, which write metrics down, and observers, which look at the state and find more.

  Where one fails, that is one line in the log, and the run goes on.

  Attributes:
    failures: how often that was, by name.
  """

  def __init__(self, recorders: Mapping[str, hooks.Hook], observers: Mapping[str, hooks.Hook]):
    self._recorders, self._observers = recorders, observers
    self.failures: dict[str, int] = {}

  def record(self, step: int, metrics: dict[str, float]):
    """Writes metrics down, if there are any; a second call for one step adds to it."""
    for name, recorder in self._recorders.items():
      with self._forgiving(name, step):
        recorder(step, None, metrics)

  def observe(self, step: int, state: TrainState) -> dict[str, float]:
    """Lets the observers look at the state after a step; writes down, and returns, what they
    find."""
    found = {}
    for name, observer in self._observers.items():
      with self._forgiving(name, step):
        observer(step, state, found)
    if found:
      self.record(step, found)
    return found

  def flush(self):
    """Makes what was recorded survive the death of this process."""
    for name, recorder in self._recorders.items():
      if hasattr(recorder, "flush"):
        with self._forgiving(name, None):
          recorder.flush()

  def close(self):
    """Ends all, and says how often they failed."""
    for name, hook in {**self._observers, **self._recorders}.items():
      with self._forgiving(name, None):
        hook.close()
    if self.failures:
      log.warning("failed beside the training: %s", ", ".join(
        f"{name} {count} times" for name, count in self.failures.items()))

  @contextlib.contextmanager
  def _forgiving(self, name: str, step: int | None) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # what watches a run must not end it, whatever is wrong with it
      count = self.failures[name] = self.failures.get(name, 0) + 1
      # A full disk would else be told with every step.
      if count & (count - 1) == 0:
        at = "" if step is None else f" at step {step}"
        text = " ".join(str(error).split())[:200] or "no reason given"
        log.warning("%s failed%s (%s: %s), time %d; training goes on", name, at,
                    type(error).__name__, text, count)


def make_watching(run: "Run") -> tuple[Watching, list[dict[str, float]]]:
  """What watches this run, and the metrics that it wrote down before it was stopped."""
  config, pictures = run.config, run.workdir / "pictures"
  recorders, looking = {}, {}
  past = hooks.read_lines(run.workdir / "metrics.jsonl", run.start)
  last = past[-1] if past and past[-1]["step"] == run.start else {}

  def add(hooks_of: dict[str, hooks.Hook], name: str, make: Callable[[], hooks.Hook]):
    try:
      hooks_of[name] = make()
    except Exception as error:  # as where one fails later
      log.warning("%s cannot be set up (%s: %s); training goes on without", name,
                  type(error).__name__, " ".join(str(error).split())[:200])

  for name, make in run.observers(last).items():
    add(looking, name, make)
  if jax.process_index() == 0:
    add(recorders, "progress", lambda: hooks.progress(
      config.train.steps, config.train.batch_size, run.start, run.workdir))
    add(recorders, "metrics.jsonl", lambda: hooks.JsonLines(
      run.workdir / "metrics.jsonl", run.start))
    add(recorders, "TensorBoard", lambda: hooks.TensorBoard(
      run.workdir / "tensorboard", run.start, pictures, config.to_json(indent=2)))
  if run.profile:
    add(looking, "profile", lambda: hooks.Profile(run.workdir / "profile", run.profile))
  return Watching(recorders, looking), past


def observers(run: "Run", last: dict[str, float]) -> dict[str, Callable[[], hooks.Hook]]:
  """What makes the hooks that look at the state of a run of pretraining, by their names.

  Args:
    run: that is about to start.
    last: the metrics written down at the step where it starts, empty if there are none.
  """
  config, made = run.config, {}

  def evaluation(bank: Source, held_out: Source, prefix: str = "") -> Callable[[], hooks.Hook]:
    with_labels = bank.labels is not None and held_out.labels is not None
    # What somebody's weights can do before the first step is what all later figures are held to.
    fresh = not run.start and not config.init_from
    done = run.start if fresh or not with_labels or f"{prefix}knn_top1" in last else None
    return lambda: Evaluation(
      config, run.workdir, run.mesh, bank, held_out, done=done, prefix=prefix)

  if run.held_out is not None:
    made["evaluation"] = evaluation(run.source, run.held_out)
  if run.general is not None:
    made["general evaluation"] = evaluation(*run.general, GENERAL)
  if config.evals.tasks and config.evals.every:
    known = run.start and any(name.startswith("tasks/") for name in last)
    made["tasks"] = lambda: Tasks(
      config, run.workdir, run.mesh, done=run.start if known else None)
  if config.health.images:
    made["health"] = lambda: Health(
      config, run.workdir, run.mesh, run.source if run.held_out is None else run.held_out,
      start=run.start, done=run.start if "rankme" in last else None)
  return made
