"""One run on its way: its state, and what happens to it beside the steps."""

import logging
import time
from typing import Any

import jax

from dinov3_jax.costs.flops import CHIPS, StepFlops
from dinov3_jax.train import checkpoint, hooks
from dinov3_jax.train.best import Best
from dinov3_jax.train.inputs import Batch
from dinov3_jax.train.prepare import Run
from dinov3_jax.train.stability import Stability
from dinov3_jax.train.state import TrainState
from dinov3_jax.train.watching import Watching
from dinov3_jax.train.writer import Writer

log = logging.getLogger(__name__)


class Course:
  """What of a run changes from step to step; the loop tells it when to do what.

  Attributes:
    run: what it was prepared from.
    state: after `step` steps.
    interval: what measures the speed.
    saving_is_due: whether the last state that should be saved is not.
  """

  def __init__(self, run: Run, state: TrainState, watching: Watching, writer: Writer,
               stability: Stability, best: Best | None = None):
    self.run, self.state, self.step = run, state, run.start
    self.watching, self.writer, self.stability = watching, writer, stability
    self._best = best
    self.interval = make_interval(run.config)
    self.saving_is_due = False
    self._metrics, self._values = None, {}
    # Of a restart, too, if it was killed before this was done.
    self._observe()

  @property
  def is_done(self) -> bool:
    return self.step >= self.run.config.train.steps

  @property
  def logs(self) -> bool:
    """Whether the last step is one whose metrics are written down."""
    return self.step % self.run.config.log_every == 0

  def take_step(self, batch: Batch):
    """Hands a step to the devices, and does not wait for it."""
    self.state, self._metrics = self.run.train_step(self.state, batch)
    self.step += 1

  def look(self, waited: float, flops: StepFlops):
    """Takes note of the step, which may not be finished.

    Args:
      waited: seconds spent waiting for the next batch.
      flops: what was computed for it.

    Raises:
      FloatingPointError: too many steps in a row were not finite.
    """
    self.interval.add(self._metrics, waited=waited, flops=flops)
    try:
      self.stability(self.step, self._metrics)
    except FloatingPointError as error:
      raise FloatingPointError(f"{error}; {self.advice()}") from None

  def wait(self):
    """Waits until the step is done."""
    jax.block_until_ready(self._metrics)

  def measure(self):
    """Waits for the metrics where they are due."""
    self._values = self.interval.means() if self.logs or self.is_done else {}

  def record(self):
    """Writes down what was measured."""
    self.watching.record(self.step, self._values)

  def save_and_observe(self, position: Any, timed: bool, ending: bool):
    """Saves the state where that is due, and lets the observers look at it.

    Args:
      position: of the data stream after the step.
      timed: a checkpoint is due by time.
      ending: this was the run's last step, or is until somebody starts it again.

    Raises:
      FloatingPointError: the run has ended far outside its past.
      OSError: with `checkpoint.on_error=stop`, a checkpoint cannot be written.
    """
    config = self.run.config
    self.saving_is_due |= self.step % config.checkpoint.every == 0 or timed or ending
    if config.evals.best and config.evals.every:  # what is looked at may be the best
      self.saving_is_due |= self.step % config.evals.every == 0
    self.writer.poll()
    if self.saving_is_due:
      self.saving_is_due = not self._save(position, ending)
    self._observe()

  def _observe(self):
    found = self.watching.observe(self.step, self.state)
    if self._best is not None:
      self._best(self.step, found)

  def save_at_once(self, position: Any):
    """Saves the last state unless that is done; for a signal that came late in a step."""
    if self.step not in self.writer.steps():
      self.saving_is_due = not self._save(position, ending=True)

  def _save(self, position: Any, ending: bool) -> bool:
    """Saves the state unless it is far outside its past; whether it did.

    At the end of a run only what has been outside for long is held back: one spike is no reason to
    lose the steps before it.
    """
    try:
      self.stability.look()
    except FloatingPointError as error:
      raise FloatingPointError(f"{error}; {self.advice()}") from None
    if self.stability.rising or (self.stability.since is not None and not ending):
      return False
    self.watching.flush()  # what was recorded up to a step outlives a kill if its checkpoint does
    return self.writer.save(self.step, self.state, position, self.run.config)

  def not_saved(self) -> FloatingPointError:
    """The error of a run whose last state was held back."""
    return FloatingPointError(
      f"the state after step {self.step} is not saved: since step {self.stability.since}, "
      f"{self.stability.why}; {self.advice()}")

  def advice(self) -> str:
    """What is known of the checkpoints of a run that no longer learns, and what to do."""
    since = self.stability.since
    before = [step for step in self.writer.steps() if since is None or step < since]
    newest = (f"the newest checkpoint from before step {since} is "
              f"{self.run.workdir / checkpoint.FOLDER / str(before[-1])}" if before else
              "there is no checkpoint from before that")
    return f"{newest}: lower the learning rate, or look at the data"


def make_interval(config) -> hooks.Interval:
  """What measures the speed on these devices."""
  chip = CHIPS.get(jax.devices()[0].device_kind)
  return hooks.Interval(config.train.batch_size,
                        jax.device_count() / (chip.devices if chip else 1),
                        chip.flops if chip else None)


class Pause:
  """Leaves the time that its `with` block takes out of the speed of all runs."""

  def __init__(self, courses: list[Course]):
    self._courses = courses

  def __enter__(self):
    self._began = time.perf_counter()

  def __exit__(self, *_):
    for course in self._courses:
      course.interval.exclude(time.perf_counter() - self._began)
