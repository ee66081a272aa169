import time

import jax.numpy as jnp
import pytest

from dinov3_jax.costs.flops import StepFlops
from dinov3_jax.train import loop, prepare
from dinov3_jax.train.course import Course, Pause
from dinov3_jax.train.stability import Stability
from dinov3_jax.train.writer import Writer


class Watching:
  """Notes what it is told."""

  def __init__(self):
    self.recorded, self.observed, self.flushed = {}, [], 0

  def record(self, step, metrics):
    self.recorded[step] = metrics

  def observe(self, step, state):
    self.observed.append((step, int(state.step)))

  def flush(self):
    self.flushed += 1


@pytest.fixture(autouse=True)
def method(stand_in):
  return stand_in


@pytest.fixture
def make(quick_config, tmp_path):
  """`make()`: a course at its start, and what watches it."""
  opened = []

  def begin(**changes):
    quick_config.update_from_flattened_dict(changes)
    run = prepare.prepare(quick_config, tmp_path)
    writer = Writer(tmp_path, keep=9, keep_every=0)
    opened.extend((run.pipeline, writer))
    watching = Watching()
    return Course(run, loop.first_state(run), watching, writer, Stability(2)), watching

  yield begin
  for thing in opened:
    thing.close()


def advance(course, steps, ending=False):
  for _ in range(steps):
    course.take_step(course.run.first[0])
    course.look(0.0, StepFlops(1.0, 1.0))
    course.measure()
    course.record()
    course.save_and_observe({"step": course.step}, False, ending or course.is_done)


def test_steps_are_counted_logged_saved_and_observed(make):
  course, watching = make()
  advance(course, 5)
  assert course.step == int(course.state.step) == 5 and not course.is_done and not course.logs
  assert course.writer.steps() == [2, 4]  # as checkpoint.every says
  assert watching.observed == [(i, i) for i in range(6)] and watching.flushed == 2
  assert {step for step, values in watching.recorded.items() if values} == {2, 4}
  advance(course, 3)
  assert course.is_done and course.writer.steps() == [2, 4, 6, 8]


def test_what_was_done_before_is_observed_once_more(make):
  course, _ = make()
  advance(course, 4)
  course.writer.wait()
  again, watching = make()
  assert again.step == 4 and watching.observed == [(4, 4)]


def test_a_last_step_is_saved_at_once_unless_it_is(make):
  course, _ = make()
  advance(course, 3)
  course.save_at_once({"step": 3})
  assert course.writer.steps() == [2, 3] and not course.saving_is_due
  advance(course, 1)
  course.save_at_once({"step": 4})
  assert course.writer.steps() == [2, 3, 4]


def test_too_many_steps_that_are_not_finite_name_the_checkpoint_to_go_back_to(make, method):
  method.bad_steps = (4, 5, 6)
  course, _ = make(**{"checkpoint.every": 1})
  advance(course, 5)
  assert course.saving_is_due and course.writer.steps() == [1, 2, 3]
  error = str(course.not_saved())
  assert "the state after step 5 is not saved" in error and "checkpoints/3" in error
  with pytest.raises(FloatingPointError, match=r"step 6 .*checkpoints/3: lower the learning rate"):
    advance(course, 1)


def test_a_pause_counts_for_no_run(make):
  course, _ = make(**{"log_every": 1})
  course.take_step(course.run.first[0])
  course.wait()
  course.interval.restart_clock()
  began = time.perf_counter()
  course.look(0.0, StepFlops(1.0, 1.0))
  with Pause([course]):
    time.sleep(0.3)
  values = course.interval.means()
  training = time.perf_counter() - began - 0.3
  assert values["images_per_second"] >= 8 / training * 0.9
  assert jnp.isfinite(values["loss"])
