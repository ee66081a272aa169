import itertools

import jax.numpy as jnp
import pytest

from dinov3_jax.train import stability
from dinov3_jax.train.stability import (
  ACCEPTED,
  CAUTIOUS_FACTOR,
  ENOUGH,
  FACTOR,
  RECENT,
  RISE,
  Stability,
)


def metrics(loss=1.0, norm=1.0, skipped=0.0):
  return {"loss": loss, "grad_norm/backbone": norm, "skipped": skipped, "lr": 1e9 * skipped}


def watch(*steps, forgiven=2, past=(), first=1):
  """What has looked at all of these steps; each is the arguments of `metrics`."""
  watching = Stability(forgiven, past)
  for step, values in enumerate(steps, first):
    watching(step, metrics(**values))
  watching.look()
  return watching


def calm(count):
  return [{}] * count


def test_an_even_run_is_inside():
  watching = watch(*calm(RECENT + 10))
  assert watching.since is None and not watching.rising


@pytest.mark.parametrize("known, factor", [(ENOUGH - 1, CAUTIOUS_FACTOR), (ENOUGH, FACTOR)])
def test_a_gradient_far_above_its_median_is_outside(known, factor):
  """With few values to compare with, only what is farther still."""
  assert watch(*calm(known), dict(norm=0.999 * factor)).since is None
  watching = watch(*calm(known), dict(norm=1.001 * factor))
  assert watching.since == known + 1
  assert watching.why == f"grad_norm/backbone is {1.001 * factor:.4g}, its median 1"


@pytest.mark.parametrize("known, tenths", [(ENOUGH - 1, CAUTIOUS_FACTOR), (ENOUGH, FACTOR)])
@pytest.mark.parametrize("level", [5.0, -5.0])
def test_a_loss_far_above_its_median_is_outside(known, tenths, level):
  """By multiples of its size, whatever its sign."""
  before = [dict(loss=level)] * known
  far = tenths / 10 * abs(level)
  assert watch(*before, dict(loss=level + 0.99 * far)).since is None
  watching = watch(*before, dict(loss=level + 1.01 * far))
  assert watching.since == known + 1 and watching.why.startswith("loss is ")


def test_a_loss_that_varies_much_is_measured_by_that():
  """Its median is 0 and its median deviation 4: ten of those are allowed."""
  before = [dict(loss=loss) for loss in (-8.0, 8.0, -4.0, 4.0, 0.0) * (RECENT // 5)]
  assert watch(*before, dict(loss=39.0)).since is None
  assert watch(*before, dict(loss=41.0)).since == len(before) + 1


def test_one_loss_alone_is_no_measure():
  assert watch(dict(loss=0.01), dict(loss=1.0)).since is None
  assert watch(dict(loss=0.01), dict(loss=0.01), dict(loss=1.0)).since == 3


def test_below_the_past_is_inside():
  assert watch(*calm(ENOUGH), dict(loss=-100.0, norm=0.0)).since is None


def test_what_was_always_zero_is_no_measure():
  """Such as the gradient of a head whose loss has no weight."""
  zero = [dict(loss=0.0, norm=0.0)] * ENOUGH
  assert watch(*zero, dict(loss=1e-6, norm=1e-6)).since is None


def test_other_metrics_are_not_looked_at():
  watching = Stability(0)
  for step, rate in enumerate([1e-6] * ENOUGH + [1.0], 1):
    watching(step, metrics() | {"lr": rate})
  watching.look()
  assert watching.since is None


def test_every_gradient_is_compared_with_its_own_past():
  watching = Stability(0)
  for step in range(1, ENOUGH + 2):
    head = 1e5 if step <= ENOUGH else 2e6
    watching(step, metrics() | {"grad_norm/dino_head": head})
  watching.look()
  assert watching.why == "grad_norm/dino_head is 2e+06, its median 1e+05"


def test_a_spike_is_over_with_the_first_step_inside(caplog):
  caplog.set_level("INFO", "dinov3_jax")
  watching = watch(*calm(ENOUGH), dict(norm=99.0), dict(norm=99.0), {})
  assert watching.since is None
  assert [record.getMessage() for record in caplog.records] == [
    "step 51 is far outside the steps before: grad_norm/backbone is 99, its median 1; checkpoints "
    "wait until it is over",
    "step 53 is inside again, after 2 steps far outside"]


def test_steps_far_outside_do_not_become_the_past():
  spikes = [dict(norm=99.0)] * (RECENT - ENOUGH)
  watching = watch(*calm(ENOUGH), *spikes, {}, *spikes)
  assert watching.since == ENOUGH + len(spikes) + 2


def test_only_recent_steps_are_the_past():
  """A slow change is followed, wherever it leads."""
  slow = [dict(norm=1.03**step) for step in range(300)]
  assert watch(*slow).since is None
  assert watch(*slow[:RECENT], dict(norm=slow[200]["norm"])).since == RECENT + 1


def test_a_rise_is_what_does_not_pass():
  for outside in (RISE - 1, RISE):
    watching = watch(*calm(ENOUGH), *[dict(norm=99.0)] * outside)
    assert watching.since == ENOUGH + 1
    assert watching.rising == (outside == RISE)
  watching(ENOUGH + RISE + 1, metrics())
  watching.look()
  assert not watching.rising


def test_a_level_that_lasts_is_taken_as_normal(monkeypatch, caplog):
  monkeypatch.setattr(stability, "ACCEPTED", 20)
  assert ACCEPTED > RISE  # so that a rise is told long before
  level = dict(norm=99.0)
  assert watch(*calm(ENOUGH), *[level] * 20).since == ENOUGH + 1
  watching = watch(*calm(ENOUGH), *[level] * 21)
  assert watching.since is None and not watching.rising
  assert ("grad_norm/backbone is 99, its median 1 since step 51, taken as normal from step 71 on"
          in caplog.text)
  # From here on it is the level that others are compared with.
  for step, norm in enumerate([99.0] * ENOUGH + [150.0], 72):
    watching(step, metrics(norm=norm))
  watching.look()
  assert watching.since is None
  watching(200, metrics(norm=99.0 * FACTOR * 1.01))
  watching.look()
  assert watching.since == 200


BAD = dict(loss=float("nan"), norm=float("inf"), skipped=1.0)


def test_as_many_steps_in_a_row_as_forgiven_may_be_not_finite(caplog):
  watching = watch(BAD, BAD, {}, BAD, BAD, forgiven=2)
  assert watching.since == 4 and watching.why == "loss or gradient not finite"
  assert "step 5 was not finite and changed nothing" in caplog.text
  with pytest.raises(FloatingPointError, match=r"^step 3 is number 3 in a row whose loss or "):
    watch(BAD, BAD, BAD, forgiven=2)
  with pytest.raises(FloatingPointError, match=r"^step 1 is number 1 in a row"):
    watch(BAD, forgiven=0)


def test_what_is_not_finite_does_not_become_the_past():
  steps = itertools.chain.from_iterable([{}, BAD] for _ in range(ENOUGH))
  watching = watch(*steps, dict(norm=FACTOR * 1.01), forgiven=1)
  assert watching.why.startswith("loss or gradient not finite")  # step 100, outside until now
  assert watching.since == 2 * ENOUGH
  watching(102, metrics())
  watching(103, metrics(norm=FACTOR * 1.01))
  watching.look()
  assert watching.since == 103 and watching.why.endswith("its median 1")


def test_skipped_and_spiking_steps_are_one_stretch():
  watching = watch(*calm(ENOUGH), BAD, dict(norm=99.0), BAD, *[dict(norm=99.0)] * (RISE - 3),
                   forgiven=1)
  assert watching.since == ENOUGH + 1 and watching.rising


def test_the_past_from_before_a_restart_counts():
  """It was written as means over log intervals; one in which all was skipped has neither."""
  lines = [{"step": 10.0 * i, "loss": 1.0, "grad_norm/backbone": 1.0, "images_per_second": 9.0}
           for i in range(ENOUGH)] + [{"step": 510.0, "skipped": 10.0}]
  assert watch(dict(norm=FACTOR * 1.01), past=lines, first=511).since == 511
  assert watch(dict(norm=FACTOR * 1.01), past=lines[1:], first=511).since is None
  assert watch(dict(norm=FACTOR * 1.01), first=511).since is None


def test_of_a_long_past_the_end_counts():
  lines = [{"loss": 1.0, "grad_norm/backbone": 1000.0}] * 300 + [
    {"loss": 1.0, "grad_norm/backbone": 1.0}] * RECENT
  assert watch(dict(norm=FACTOR * 1.01), past=lines).since == 1


def test_a_step_is_looked_at_when_the_next_one_is_under_way():
  """So that the devices never wait for the answer."""
  looked = []

  class Answer:
    """A metric that notes when it is brought to the host."""

    def __init__(self, step):
      self.step = step

    def __array__(self, dtype=None, copy=None):
      looked.append(self.step)
      return jnp.zeros(()).__array__(dtype)

    def __bool__(self):
      looked.append(self.step)
      return False

  watching = Stability(0)
  for step in (1, 2, 3):
    watching(step, {"skipped": Answer(step)})
    assert sorted(set(looked)) == list(range(1, step))
  watching.look()
  assert sorted(set(looked)) == [1, 2, 3]
  looked.clear()
  watching.look()  # there is nothing new
  assert looked == []


def test_arrays_of_devices_are_taken():
  watching = Stability(0)
  for step in range(1, ENOUGH + 2):
    values = metrics(norm=1.0 if step <= ENOUGH else 50.0)
    watching(step, {name: jnp.float32(value) for name, value in values.items()})
  watching.look()
  assert watching.since == ENOUGH + 1
