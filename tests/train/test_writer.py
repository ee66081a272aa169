import os
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import CheckpointManager

from configs import base
from dinov3_jax.train import checkpoint, durable, writer
from dinov3_jax.train.writer import Writer
from dinov3_jax.weights import checksums
from dinov3_jax.weights.native import stored_checksums

SETTINGS = base.get_config()


def saved(workdir):
  return sorted(map(int, os.listdir(workdir / "checkpoints")))


def abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def small(value=0.0):
  return {"cls_token": jnp.full((2, 3), value)}


@pytest.mark.parametrize("keep, keep_every, kept", [
  (1, 0, [10]), (2, 4, [4, 8, 10]), (9, 0, [2, 4, 6, 8, 10])])
def test_keeps_the_last_and_every_nth(tmp_path, keep, keep_every, kept):
  with Writer(tmp_path, keep, keep_every) as writer:
    for step in (2, 4, 6, 8, 10):
      assert writer.save(step, small(), {}, SETTINGS)
    writer.wait()
    assert writer.steps() == kept
  assert saved(tmp_path) == kept


def test_what_an_earlier_process_kept_counts(tmp_path):
  for steps in ((2, 4), (6, 8)):
    with Writer(tmp_path, keep=2, keep_every=4) as writer:
      for step in steps:
        writer.save(step, small(), {}, SETTINGS)
  assert saved(tmp_path) == [4, 6, 8]


def test_a_checkpoint_has_the_state_the_position_the_settings_and_checksums(tmp_path):
  position = {"step": 3, "of": [1, None]}
  with Writer(tmp_path, keep=2, keep_every=0) as writer:
    writer.save(3, small(7.0), position, SETTINGS)
  folder = checkpoint.latest(tmp_path)
  restored = checkpoint.restore(folder, abstract(small()))
  chex.assert_trees_all_equal(restored, small(7.0))
  assert checkpoint.stored_position(folder) == position
  assert checkpoint.changes(folder, SETTINGS) == []
  assert stored_checksums(folder)["arrays"] == checksums.of_arrays(small(7.0))[0]


def test_saving_does_not_see_what_training_does_next(tmp_path):
  """The state's memory is donated to the next step while the writer is still busy."""
  state = {"w": jnp.zeros((256, 1024))}
  add = jax.jit(lambda state: {"w": state["w"] + 1}, donate_argnums=0)
  wanted = abstract(state)
  with Writer(tmp_path, keep=10, keep_every=0) as writer:
    for step in range(1, 6):
      state = add(state)
      writer.save(step, state, {}, SETTINGS)
      for _ in range(20):
        state = add(state)
  for step in range(1, 6):
    folder = checkpoint.locate(tmp_path / "checkpoints" / str(step))
    restored = checkpoint.restore(folder, wanted)
    np.testing.assert_array_equal(restored["w"], step + 20 * (step - 1))


def test_a_step_is_written_once(tmp_path):
  with Writer(tmp_path, keep=2, keep_every=0) as writer:
    for value in (1.0, 9.0):
      assert writer.save(3, small(value), {}, SETTINGS)
  restored = checkpoint.restore(checkpoint.latest(tmp_path), abstract(small()))
  chex.assert_trees_all_equal(restored, small(1.0))


def test_seconds_since_the_last_save_or_the_start(tmp_path, monkeypatch):
  now = [1000.0]
  monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
  with Writer(tmp_path, keep=1, keep_every=0) as made:
    now[0] += 40
    assert made.seconds == 40
    made.save(1, small(), {}, SETTINGS)
    assert made.seconds == 0
    now[0] += 7
    made.save(1, small(), {}, SETTINGS)  # is there already: the next is due as long after
    assert made.seconds == 0
    now[0] += 9
    made.save(2, {"cls_token": jnp.array([np.nan])}, {}, SETTINGS)  # is not saved
    now[0] += 1
    assert made.seconds == 1


def test_without_checksums_nothing_is_said_of_the_arrays(tmp_path):
  with Writer(tmp_path, keep=1, keep_every=0, verify=False) as writer:
    assert writer.save(1, {"cls_token": jnp.array([np.inf])}, {}, SETTINGS)
  assert not (checkpoint.latest(tmp_path) / "checksums").exists()


@pytest.fixture
def disk(monkeypatch):
  """A disk that takes what it is given while `disk.room` is true, and once `disk.ready` is set."""

  class Disk:
    room, ready = True, threading.Event()

  sync_tree, disk = durable.sync_tree, Disk()
  disk.ready.set()

  def write(folder):
    assert disk.ready.wait(20)
    if not disk.room:
      raise OSError(28, "No space left on device", str(folder))
    sync_tree(folder)

  monkeypatch.setattr(durable, "sync_tree", write)
  return disk


def until_done(writer):
  """Polls as a run does between its steps, until there is nothing more to tell."""
  deadline = time.monotonic() + 20
  while writer._saving and time.monotonic() < deadline:
    writer.poll()
    time.sleep(0.01)


def test_a_poll_does_not_wait(tmp_path, disk):
  disk.ready.clear()
  with Writer(tmp_path, keep=1, keep_every=0) as writer:
    writer.save(1, small(), {}, SETTINGS)
    writer.poll()
    assert not (tmp_path / "checkpoints" / "1").exists()
    assert writer.steps() == [1]  # it is on its way
    disk.ready.set()
  assert saved(tmp_path) == [1]


def test_a_poll_tells_of_a_failure_and_the_next_save_tries_again(tmp_path, disk, caplog):
  with Writer(tmp_path, keep=3, keep_every=0) as writer:
    writer.save(1, small(), {}, SETTINGS)
    writer.wait()
    assert writer.failed is None
    disk.room = False
    assert writer.save(2, small(), {}, SETTINGS)  # it is on its way: nobody knows yet
    until_done(writer)
    assert isinstance(writer.failed, OSError)
    assert str(writer.failed).startswith("the checkpoint of step 2 cannot be written to ")
    assert caplog.text.count("the next one tries again") == 1
    assert writer.steps() == [1] == saved(tmp_path)  # its unfinished files are gone, too
    disk.room = True
    assert writer.save(2, small(), {}, SETTINGS)
    writer.wait()
    assert writer.failed is None
  assert saved(tmp_path) == [1, 2]


@pytest.mark.parametrize("ask", [Writer.poll, Writer.wait, Writer.close,
                                 lambda writer: writer.save(2, small(), {}, SETTINGS)])
def test_a_failure_is_raised_once_where_a_run_shall_stop(tmp_path, disk, ask):
  disk.room = False
  writer = Writer(tmp_path, keep=3, keep_every=0, stop_on_error=True)
  writer.save(1, small(), {}, SETTINGS)
  with pytest.raises(OSError, match="the checkpoint of step 1 cannot be written") as caught:
    for _ in range(2000):  # a poll may come too early
      ask(writer)
      time.sleep(0.01)
  assert "\n" not in str(caught.value) and writer.failed is caught.value
  writer.close()


def test_what_fails_at_once_is_told_like_what_fails_later(tmp_path, monkeypatch, caplog):
  def refuse(*_, **__):
    raise OSError(30, "Read-only file system")

  with Writer(tmp_path, keep=3, keep_every=0) as writer:
    with monkeypatch.context() as patch:
      patch.setattr(CheckpointManager, "save", refuse)
      assert not writer.save(1, small(), {}, SETTINGS)
    assert "(Read-only file system); the checkpoints before it are whole" in str(writer.failed)
    assert writer.save(1, small(), {}, SETTINGS)
  assert writer.failed is None and saved(tmp_path) == [1]
