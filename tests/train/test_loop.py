import json
import os
import signal
import threading
import time

import chex
import jax
import pytest

from dinov3_jax.train import checkpoint, loop

STEPS = 8  # of quick_config


@pytest.fixture
def config(quick_config):
  return quick_config


@pytest.fixture(autouse=True)
def method(stand_in):
  return stand_in


def steps_of(workdir):
  return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved(workdir):
  return sorted(map(int, os.listdir(workdir / "checkpoints")))


def interrupt(number=signal.SIGTERM):
  return lambda: os.kill(os.getpid(), number)


def test_trains_logs_and_saves(config, tmp_path):
  state = loop.train(config, tmp_path)
  assert int(state.step) == STEPS
  assert steps_of(tmp_path) == [2, 4, 6, 8]
  assert saved(tmp_path) == [6, 8]
  restored = checkpoint.restore(
    checkpoint.latest(tmp_path),
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state))
  chex.assert_trees_all_equal(restored, state)
  assert state.student["backbone"]["cls_token"].any()  # the stand-in did see data
  assert json.loads((tmp_path / "config.json").read_text())["train"]["batch_size"] == 8
  assert any("tfevents" in name for name in os.listdir(tmp_path / "tensorboard"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_next_run_goes_on_bit_for_bit(config, method, tmp_path, number):
  undisturbed = loop.train(config, tmp_path / "undisturbed")
  before = signal.getsignal(number)
  method.at = {3: interrupt(number)}
  stopped = loop.train(config, tmp_path / "stopped")
  assert int(stopped.step) == 3 and 3 in saved(tmp_path / "stopped")
  assert signal.getsignal(number) is before
  method.at = {}
  state = loop.train(config, tmp_path / "stopped")
  chex.assert_trees_all_equal(state, undisturbed)
  assert steps_of(tmp_path / "stopped") == [2, 4, 6, 8]


def test_a_signal_after_a_step_was_saved_stops_there(config, tmp_path, monkeypatch):
  save = checkpoint.Writer.save

  def save_and_interrupt(self, step, *rest):
    saved = save(self, step, *rest)
    if step == 4:
      interrupt()()
    return saved

  monkeypatch.setattr(checkpoint.Writer, "save", save_and_interrupt)
  assert int(loop.train(config, tmp_path).step) == 4
  assert saved(tmp_path) == [2, 4]


def test_a_crash_repeats_steps_but_no_lines(config, method, tmp_path):
  undisturbed = loop.train(config, tmp_path / "undisturbed")

  def crash():
    raise RuntimeError("power cut")

  config.log_every = 1
  method.at = {5: crash}
  with pytest.raises(RuntimeError, match="power cut"):
    loop.train(config, tmp_path / "crashed")
  assert steps_of(tmp_path / "crashed") == [1, 2, 3, 4, 5]
  assert saved(tmp_path / "crashed") == [2, 4]
  method.at = {}
  chex.assert_trees_all_equal(loop.train(config, tmp_path / "crashed"), undisturbed)
  assert steps_of(tmp_path / "crashed") == list(range(1, STEPS + 1))


def test_a_finished_run_has_nothing_left_to_do(config, tmp_path):
  state = loop.train(config, tmp_path)
  chex.assert_trees_all_equal(loop.train(config, tmp_path), state)
  assert steps_of(tmp_path) == [2, 4, 6, 8]
  config.train.steps = STEPS + 2
  assert int(loop.train(config, tmp_path).step) == STEPS + 2
  assert steps_of(tmp_path) == [2, 4, 6, 8, 10]


def test_forgives_as_many_skipped_steps_as_allowed(config, method, tmp_path):
  config.train.max_skipped_steps = 2
  method.bad_steps = (2, 5, 6, 8)
  loop.train(config, tmp_path)
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [line["skipped"] for line in lines] == [1, 0, 2, 1]
  assert ["loss" in line for line in lines] == [True, True, False, True]


@pytest.mark.parametrize("bad, named", [((4, 5, 6), 6), ((6, 7, 8), 8)])
def test_one_skipped_step_too_many_stops_and_names_it(config, method, tmp_path, bad, named):
  config.train.max_skipped_steps = 2
  method.bad_steps = bad
  with pytest.raises(FloatingPointError, match=f"step {named} "):
    loop.train(config, tmp_path)
  assert max(saved(tmp_path)) <= named


def test_works_in_another_thread(config, tmp_path):
  """Where no signal handler can be set, as in some notebooks."""
  result = []
  thread = threading.Thread(target=lambda: result.append(loop.train(config, tmp_path)))
  thread.start()
  thread.join()
  assert int(result[0].step) == STEPS


def test_waiting_for_data_and_speed_leave_hooks_out(config, method, tmp_path):
  method.at = {3: lambda: time.sleep(1)}
  loop.train(config, tmp_path)
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert all(0 <= line["data_wait"] <= 1 for line in lines)
  # Two steps of eight images, with the second of sleep between them, would be less than 16.
  assert lines[1]["images_per_second"] > 16
