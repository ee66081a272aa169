import json
import os
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import pytest

from dinov3_jax.data.lock import FolderLock
from dinov3_jax.train import loop, prepare
from dinov3_jax.train.state import TrainState
from dinov3_jax.train.writer import Writer
from dinov3_jax.weights.native import DamagedCheckpoint


@pytest.fixture
def config(quick_config):
  return quick_config


@pytest.fixture(autouse=True)
def method(stand_in):
  return stand_in


@pytest.fixture
def ready(config, tmp_path):
  """`ready(workdir)`: a run that is ready to start there; its pipeline is closed at the end."""
  runs = []

  def make(workdir=tmp_path, **kwargs):
    runs.append(prepare.prepare(config, workdir, **kwargs))
    return runs[-1]

  yield make
  for run in runs:
    run.pipeline.close()


def files(folder):
  return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def write(run, *steps):
  """Checkpoints of a fresh state, each with the data's position after as many batches."""
  state = loop.first_state(run)
  with Writer(run.workdir, keep=9, keep_every=0) as writer:
    for step in steps:
      assert writer.save(step, state.replace(step=jnp.int32(step)), {"step": step}, run.config)
  return state


def damage(folder, item="data"):
  shutil.rmtree(folder / item)


def test_a_fresh_run_is_ready_and_nothing_is_written_or_compiled(ready, tmp_path):
  run = ready(tmp_path / "runs" / "a", profile=3)
  assert os.listdir(run.workdir) == []
  assert run.train_step._cache_size() == 0
  assert (run.start, run.folder, run.damaged, run.stopped, run.profile) == (0, None, [], 0, 3)
  batch, position = run.first
  assert position == {"step": 1} and batch["global_crops"].shape == (8, 2, 16, 16, 3)
  assert len(run.source) == 12 and run.held_out is None
  assert all(hasattr(x, "sharding") for x in jax.tree.leaves(run.abstract_state))


def test_home_is_ones_own(ready, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert ready("~/runs/b").workdir == tmp_path / "runs" / "b"


def test_a_run_goes_on_with_the_batch_after_its_newest_checkpoint(ready, tmp_path):
  fresh = ready()
  write(fresh, 2, 4)
  run = ready()
  assert (run.start, run.folder.name, run.damaged) == (4, "4", [])
  batch, position = run.first
  assert position == {"step": 5}
  fresh.pipeline.set_state({"step": 4})
  chex.assert_trees_all_equal(jax.device_get(batch), next(fresh.pipeline))


@pytest.mark.parametrize("changes, message", [
  ({"crops.global_sizes": (20,)}, "crop size 20"),
  ({"crops.local_sizes": (9,)}, "crop size 9"),
  ({"train.steps": 0}, "train.steps"),  # and whatever else check_settings refuses
  ({"train.batch_size": 12}, "12 images cannot be spread over 8 data shards"),
  ({"mesh.fsdp": 3}, "mesh"),
  ({"data.source": "/nowhere"}, "/nowhere"),
  ({"init_from": "/nowhere"}, "there is no file or folder /nowhere"),
])
def test_refuses_what_cannot_work(config, tmp_path, changes, message):
  config.update_from_flattened_dict(changes)
  with pytest.raises((ValueError, OSError), match=message) as caught:
    prepare.prepare(config, tmp_path)
  assert "\n" not in str(caught.value)
  assert not os.listdir(tmp_path)


def test_refuses_a_state_that_no_device_can_hold(config, tmp_path, monkeypatch):
  asked = []

  def check(state, available):
    asked.append(available)
    raise ValueError("the training state takes 9.0 GiB on each device")

  monkeypatch.setattr(prepare.sharding, "check_memory", check)
  with pytest.raises(ValueError, match="the training state takes"):
    prepare.prepare(config, tmp_path)
  memory = jax.devices()[0].memory_stats() or {}
  assert asked == [memory.get("bytes_limit")]


def test_refuses_a_workdir_that_it_cannot_write(config, tmp_path):
  file = tmp_path / "file"
  file.write_text("keep me")
  for workdir in (file, file / "below"):
    with pytest.raises(OSError, match=r"cannot write to .*--workdir"):
      prepare.prepare(config, workdir)
  assert file.read_text() == "keep me"


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
  (tmp_path / "mine").write_text("keep me")
  prepare.check_writable(tmp_path)
  assert os.listdir(tmp_path) == ["mine"]


def test_refuses_a_folder_in_use_and_holds_it_no_longer_than_it_looks(config, ready, tmp_path):
  with FolderLock(tmp_path, "a test"), pytest.raises(BlockingIOError, match="in use by a test"):
    prepare.prepare(config, tmp_path)
  ready()
  with prepare.lock(tmp_path):
    pass


def test_refuses_a_checkpoint_of_another_model_and_leaves_it(ready, config, tmp_path, monkeypatch):
  state = write(ready(), 4)
  before = files(tmp_path)
  wide = lambda config: TrainState(*(jax.tree.map(lambda x: jnp.zeros((1, 1, 6)), state.student)
                                     if i in (1, 2) else part for i, part in
                                     enumerate((state.step, None, None, None, ()))))
  monkeypatch.setattr(prepare, "init_state", wide)
  with pytest.raises(ValueError, match=r"cls_token is float32\[1, 1, 4\] there, "
                                       r"float32\[1, 1, 6\] here"):
    prepare.prepare(config, tmp_path)
  assert before == files(tmp_path)


@pytest.mark.parametrize("bad, before, found, damaged", [
  ((), None, "6", []), ((), 6, "4", []), ((), 2, None, []), ((6,), None, "4", ["6"]),
  ((6, 4), None, "2", ["6", "4"]), ((6, 4), 6, "2", ["4"])])
def test_find_takes_the_newest_whole_one_and_names_the_others(ready, config, bad, before, found,
                                                              damaged):
  run = ready()
  write(run, 2, 4, 6)
  for step in bad:
    damage(run.workdir / "checkpoints" / str(step))
  kept = files(pathlib.Path(run.workdir))
  folder, position, errors = prepare.find(config, run.workdir, run.abstract_state, before)
  assert (folder and folder.name) == found and position == (found and {"step": int(found)})
  assert [error.folder.name for error in errors] == damaged
  assert kept == files(pathlib.Path(run.workdir))  # nothing is set aside by looking


@pytest.mark.parametrize("count, others", [
  (1, ""), (2, r" \(nor are 1 older ones whole\)"), (3, r" \(nor are 2 older ones whole\)")])
def test_none_is_whole(ready, config, count, others):
  run = ready()
  steps = [2, 4, 6][:count]
  write(run, *steps)
  for step in steps:
    damage(run.workdir / "checkpoints" / str(step))
  with pytest.raises(DamagedCheckpoint, match=rf"/checkpoints/{steps[-1]} is damaged: its data .*"
                     rf"{others}; to start anew, choose another --workdir$") as caught:
    prepare.find(config, run.workdir, run.abstract_state)
  assert "\n" not in str(caught.value)


def test_more_steps_than_there_shall_be(ready, config):
  run = ready()
  write(run, 6)
  config.train.steps = 4
  with pytest.raises(ValueError, match=r"has done 6 steps, more than train\.steps=4: set more"):
    prepare.find(config, run.workdir, run.abstract_state)


def falsify(folder):
  """Gives a checkpoint the checksum of another array, which only reading it can find."""
  path, = (path for path in (folder / "checksums").rglob("*")
           if path.is_file() and b'"arrays"' in path.read_bytes())
  content = json.loads(path.read_text())
  content["arrays"]["teacher/backbone/cls_token"] = "0" * 16
  path.write_text(json.dumps(content))


def test_restore_goes_back_to_the_newest_that_can_be_read(ready, caplog):
  """With the batch that followed it, and the damaged ones out of the way."""
  fresh = ready()
  state = write(fresh, 2, 4, 6)
  for step in (4, 6):
    falsify(pathlib.Path(fresh.workdir / "checkpoints" / str(step)))
  run = ready()
  assert run.start == 6
  chex.assert_trees_all_equal(prepare.restore(run), state.replace(step=jnp.int32(2)))
  assert run.start == 2 and run.first[1] == {"step": 3} and run.damaged == []
  assert sorted(os.listdir(run.workdir / "checkpoints")) == ["2", "4.damaged", "6.damaged"]
  assert [record.getMessage().split("; it is left aside as ")[1] for record in caplog.records] == [
    "6.damaged, and the run goes on from step 2", "4.damaged, and the run goes on from step 2"]


def test_the_step_keeps_the_layout_and_reuses_the_states_memory(ready, config):
  run = ready()
  state = loop.first_state(run)
  new, _ = run.train_step(state, run.first[0])
  assert jax.tree.map(lambda x: x.sharding, new) == jax.tree.map(
    lambda x: x.sharding, run.abstract_state)
  assert all(x.is_deleted() for x in jax.tree.leaves(state.student))
