"""What stands beside the step, none of which can end a run: logs, evaluations, pictures."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping

import jax

from dinov3_jax.train import hooks
from dinov3_jax.train.evaluation import Evaluation
from dinov3_jax.train.health import Health
from dinov3_jax.train.prepare import Run
from dinov3_jax.train.state import TrainState

log = logging.getLogger(__name__)


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

  def observe(self, step: int, state: TrainState):
    """Lets the observers look at the state after a step, and writes down what they find."""
    found = {}
    for name, observer in self._observers.items():
      with self._forgiving(name, step):
        observer(step, state, found)
    if found:
      self.record(step, found)

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


def make_watching(run: Run) -> tuple[Watching, list[dict[str, float]]]:
  """What watches this run, and the metrics that it wrote down before it was stopped."""
  config, pictures = run.config, run.workdir / "pictures"
  recorders, observers = {}, {}
  past = hooks.read_lines(run.workdir / "metrics.jsonl", run.start)
  last = past[-1] if past and past[-1]["step"] == run.start else {}

  def add(hooks_of: dict[str, hooks.Hook], name: str, make: Callable[[], hooks.Hook]):
    try:
      hooks_of[name] = make()
    except Exception as error:  # as where one fails later
      log.warning("%s cannot be set up (%s: %s); training goes on without", name,
                  type(error).__name__, " ".join(str(error).split())[:200])

  if run.held_out is not None:
    with_labels = run.source.labels is not None and run.held_out.labels is not None
    done = run.start if not run.start or not with_labels or "knn_top1" in last else None
    add(observers, "evaluation", lambda: Evaluation(
      config, run.workdir, run.mesh, run.source, run.held_out, done=done))
  if config.health.images:
    add(observers, "health", lambda: Health(
      config, run.workdir, run.mesh, run.source if run.held_out is None else run.held_out,
      start=run.start, done=run.start if "rankme" in last else None))
  if jax.process_index() == 0:
    add(recorders, "progress", lambda: hooks.progress(
      config.train.steps, config.train.batch_size, run.start, run.workdir))
    add(recorders, "metrics.jsonl", lambda: hooks.JsonLines(
      run.workdir / "metrics.jsonl", run.start))
    add(recorders, "TensorBoard", lambda: hooks.TensorBoard(
      run.workdir / "tensorboard", run.start, pictures, config.to_json(indent=2)))
  if run.profile:
    add(observers, "profile", lambda: hooks.Profile(run.workdir / "profile", run.profile))
  return Watching(recorders, observers), past
