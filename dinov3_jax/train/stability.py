"""Whether a run is still learning: steps that are not finite, and values far above their past."""

import collections
import logging
import statistics
from collections.abc import Iterable, Mapping

import jax

log = logging.getLogger(__name__)

RECENT = 100  # steps whose values are the past that a step is compared with
ENOUGH = 50  # values, from which on the past is known well
FACTOR, CAUTIOUS_FACTOR = 10, 100  # above the median that is far; with fewer than ENOUGH values
RISE = 10  # steps in a row far outside that are no passing spike
ACCEPTED = 1000  # steps in a row after which a level is taken as normal


class Stability:
  """Compares each step's loss and gradient norms with those of the steps before.

  A step is far outside if it is not finite, if a gradient norm is more than `FACTOR` times its
  median over the last `RECENT` steps inside, or if the loss is above its median by more than
  `FACTOR` tenths of it and ten median deviations. What was always zero is no measure of either. A
  state after such steps may be finite and of no use, so that it should not replace an older
  checkpoint.

  It looks at a step once the next one is under way, so that the devices never wait for the answer.

  Attributes:
    since: the first step of those in a row that are far outside, None while the last is inside.
    why: what was far outside there.
  """

  def __init__(self, forgiven: int, past: Iterable[Mapping[str, float]] = ()):
    """Args:
      forgiven: steps in a row that may be not finite.
      past: metrics from before a restart, oldest first.
    """
    self._forgiven, self._not_finite, self._late, self._last = forgiven, 0, None, 0
    self._recent = collections.defaultdict(lambda: collections.deque(maxlen=RECENT))
    self.since: int | None = None
    self.why = ""
    for values in past:
      self._remember(_watched(values))

  def __call__(self, step: int, metrics: Mapping[str, jax.Array]):
    """Takes a step's metrics, and looks at those of the step before.

    Raises:
      FloatingPointError: more than `forgiven` steps in a row were not finite.
    """
    self.look()
    self._late = step, metrics

  def look(self):
    """Looks at the last step now; raises as a call does."""
    if self._late is None:
      return
    (step, metrics), self._late = self._late, None
    self._last = step
    skipped, values = jax.device_get((metrics["skipped"], _watched(metrics)))
    if not skipped:
      self._not_finite = 0
      self._compare(step, values)
      return
    self._not_finite += 1
    log.warning("step %d was not finite and changed nothing", step)
    self._outside(step, "loss or gradient not finite")
    if self._not_finite > self._forgiven:
      raise FloatingPointError(
        f"step {step} is number {self._not_finite} in a row whose loss or gradient is not finite")

  @property
  def rising(self) -> bool:
    """Whether the last steps were far outside for so long that it is no passing spike."""
    return self.since is not None and self._last - self.since + 1 >= RISE

  def _compare(self, step: int, values: Mapping[str, float]):
    why = next(filter(None, (self._far(name, float(x)) for name, x in values.items())), None)
    if why is None:
      if self.since is not None:
        log.info("step %d is inside again, after %d steps far outside", step, step - self.since)
      self.since = None
      self._remember(values)
      return
    self._outside(step, why)
    if step - self.since >= ACCEPTED:
      log.warning("%s since step %d, taken as normal from step %d on", why, self.since, step)
      self._recent.clear()
      self.since = None

  def _outside(self, step: int, why: str):
    if self.since is None:
      self.since, self.why = step, why
      log.warning("step %d is far outside the steps before: %s; checkpoints wait until it is over",
                  step, why)

  def _far(self, name: str, value: float) -> str | None:
    past = self._recent[name]
    if not past:
      return None
    median = statistics.median(past)
    factor = FACTOR if len(past) >= ENOUGH else CAUTIOUS_FACTOR
    if name == "loss":
      deviation = statistics.median(abs(x - median) for x in past)
      allowed = max(factor / 10 * abs(median), 10 * deviation)
      far = allowed > 0 and value - median > allowed and len(past) > 1
    else:
      far = median > 0 and value > factor * median
    return f"{name} is {value:.4g}, its median {median:.4g}" if far else None

  def _remember(self, values: Mapping[str, float]):
    for name, value in values.items():
      self._recent[name].append(float(value))


def _watched(metrics: Mapping) -> dict:
  return {name: value for name, value in metrics.items()
          if name == "loss" or name.startswith("grad_norm/")}
