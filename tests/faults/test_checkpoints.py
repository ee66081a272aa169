"""Checkpoints on disks that flip bits, lose files, run full, or lose power."""

import gc
import json
import os
import pathlib
import random
import resource
import shutil

import chex
import jax
import numpy as np
import pytest

from dinov3_jax.train import durable, loop, prepare
from dinov3_jax.train.writer import Writer, reason
from dinov3_jax.weights import native

DAMAGES = 12


@pytest.fixture(autouse=True)
def method(stand_in):
  return stand_in


@pytest.fixture
def whole(quick_config, tmp_path):
  """A run of four steps that has the checkpoints 2 and 4, and where eight steps lead."""
  workdir = tmp_path / "whole"
  end = loop.train(quick_config, tmp_path / "end")
  quick_config.train.steps = 4
  loop.train(quick_config, workdir)
  quick_config.train.steps = 8
  return workdir, jax.device_get(end)


def files_of(folder):
  return sorted(path for path in folder.rglob("*") if path.is_file())


def damage(path: pathlib.Path, rng: random.Random) -> str:
  """Does to a file what disks do."""
  data = bytearray(path.read_bytes())
  kind = rng.choice(["cut", "zeroed", "emptied", "deleted", "flipped", "flipped"] if data else
                    ["deleted"])
  if kind == "deleted":
    path.unlink()
    return kind
  at = rng.randrange(len(data))
  if kind == "flipped":
    data[at] ^= 1 << rng.randrange(8)
  path.write_bytes({"cut": data[:at], "zeroed": bytes(len(data)), "emptied": b"",
                    "flipped": data}[kind])
  return kind


def test_whatever_is_damaged_a_run_ends_the_same_to_the_last_bit(quick_config, whole, tmp_path,
                                                                 caplog):
  """One file at a time of the newest checkpoint, at a random place."""
  workdir, end = whole
  count = len(files_of(workdir / "checkpoints" / "4"))
  seed = random.randrange(10**6)
  print(f"seed {seed}")
  rng, set_aside = random.Random(seed), 0
  for i in range(DAMAGES):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    path = files_of(copy / "checkpoints" / "4")[i % count]
    said = f"{damage(path, rng)} {path.relative_to(copy)}"
    caplog.clear()
    state = loop.train(quick_config, copy)
    chex.assert_trees_all_equal(jax.device_get(state), end)
    lines = [record.getMessage() for record in caplog.records if " is damaged: " in
             record.getMessage()]
    aside = copy / "checkpoints" / "4.damaged"
    assert len(lines) == aside.exists(), said  # damage that no reader meets changes nothing
    if lines:
      set_aside += 1
      assert "\n" not in lines[0] and "the run goes on from step 2" in lines[0], said
      assert len(files_of(aside)) >= count - 1
    shutil.rmtree(copy)
  assert set_aside > DAMAGES // 4


def falsify(folder):
  """Gives a checkpoint another checksum of one array, as if the array had changed."""
  path, = (path for path in pathlib.Path(folder / native.CHECKSUMS).rglob("*")
           if path.is_file() and b'"arrays"' in path.read_bytes())
  content = json.loads(path.read_text())
  content["arrays"]["student/backbone/cls_token"] = "0" * 16
  path.write_text(json.dumps(content))


def test_an_array_that_is_not_what_was_written_is_named(whole):
  workdir, _ = whole
  folder = native.latest(workdir)
  abstract = {"student": {"backbone": {"cls_token": jax.ShapeDtypeStruct(
    (1, 1, 4), np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}}}
  native.read_arrays(folder, abstract)
  falsify(folder)
  with pytest.raises(native.DamagedCheckpoint, match="student/backbone/cls_token are not what"):
    native.read_arrays(folder, abstract)
  native.read_arrays(folder, abstract, verify=False)


def test_checksums_can_be_turned_off(quick_config, tmp_path):
  quick_config.checkpoint.verify = False
  loop.train(quick_config, tmp_path)
  assert not (native.latest(tmp_path) / native.CHECKSUMS).exists()
  quick_config.train.steps = 10
  assert int(loop.train(quick_config, tmp_path).step) == 10


def test_where_none_is_whole_nothing_is_touched(quick_config, whole):
  workdir, _ = whole
  for folder in (workdir / "checkpoints").iterdir():
    shutil.rmtree(folder / "config")
  before = files_of(workdir)
  with pytest.raises(native.DamagedCheckpoint, match=r"4 is damaged: .*choose another --workdir"):
    loop.prepare(quick_config, workdir)
  assert files_of(workdir) == before


def test_only_the_reading_finds_all_damaged(quick_config, whole):
  workdir, _ = whole
  for folder in (workdir / "checkpoints").iterdir():
    falsify(folder)
  with pytest.raises(native.DamagedCheckpoint, match="nor are 1 older ones whole"):
    loop.train(quick_config, workdir)
  assert sorted(os.listdir(workdir / "checkpoints")) == ["2", "4"]


def test_a_second_damaged_one_of_a_step_has_a_name_of_its_own(quick_config, whole):
  workdir, _ = whole
  quick_config.checkpoint.keep = 10
  for name in ("4.damaged", "4.damaged-2"):
    falsify(workdir / "checkpoints" / "4")
    loop.train(quick_config, workdir)
    assert (workdir / "checkpoints" / name).is_dir()
    for step in ("6", "8"):
      shutil.rmtree(workdir / "checkpoints" / step)


def test_a_log_that_is_damaged_is_no_reason_to_stop(quick_config, whole, caplog):
  workdir, _ = whole
  path = workdir / "metrics.jsonl"
  path.write_bytes(path.read_bytes() + b'\0\0\0\0\n[1]\n{"step": "x"}\n{"step": 4, "lo')
  loop.train(quick_config, workdir)
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 6, 8]
  assert any("4 lines cannot be read and are dropped" in record.getMessage()
             for record in caplog.records)


def test_all_of_a_checkpoint_is_on_disk_before_it_has_its_name(quick_config, tmp_path, monkeypatch):
  """Every file was synced after its last change, and so was every folder, the last one too."""
  synced, named = {}, []
  fsync, finalize = os.fsync, durable.DurablePath.finalize

  def note(descriptor):
    fsync(descriptor)
    status = os.fstat(descriptor)
    synced[status.st_ino] = status.st_mtime_ns

  async def finalize_and_check(self):
    folder = pathlib.Path(self.get_final())
    await finalize(self)
    if folder.name.isdigit():
      named.append(folder.name)
      for path in (folder, *folder.rglob("*")):
        status = path.stat()
        assert synced.get(status.st_ino, 0) >= status.st_mtime_ns, path
      assert folder.parent.stat().st_ino in synced

  monkeypatch.setattr(os, "fsync", note)
  monkeypatch.setattr(durable.DurablePath, "finalize", finalize_and_check)
  loop.train(quick_config, tmp_path)
  assert named == ["2", "4", "6", "8"]


def fail_to_write(monkeypatch, steps):
  """The disk is full while the checkpoints of these steps are written."""
  sync_tree = durable.sync_tree

  def full(folder):
    if any(folder.name.startswith(f"{step}.") for step in steps):
      raise OSError(28, "No space left on device", str(folder))
    sync_tree(folder)

  monkeypatch.setattr(durable, "sync_tree", full)


def test_a_full_disk_is_a_line_and_the_next_checkpoint_tries_again(quick_config, tmp_path,
                                                                   monkeypatch, caplog, capfd):
  fail_to_write(monkeypatch, [4])
  loop.train(quick_config, tmp_path)
  lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
  assert len(lines) == 1 and "\n" not in lines[0]
  assert "the checkpoint of step 4 cannot be written" in lines[0]
  assert "MiB are free (No space left on device); the checkpoints before it are whole" in lines[0]
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["6", "8"]
  assert "Traceback" not in "".join(capfd.readouterr())


def test_where_the_arrays_cannot_be_written_there_is_a_line_alone(quick_config, method, tmp_path,
                                                                  caplog):
  """The limit of a file's size makes real writes fail, those of the arrays among them."""
  quick_config.train.steps = 30
  former = resource.getrlimit(resource.RLIMIT_FSIZE)
  limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
  method.at = {3: lambda: limit(100), 15: lambda: (gc.collect(), limit(former[0]))}
  try:
    loop.train(quick_config, tmp_path)
  finally:
    limit(former[0])
  gc.collect()
  told = [record for record in caplog.records if record.levelname == "ERROR"]
  assert told and {record.name for record in told} == {"dinov3_jax.train.writer"}
  assert all("(File too large)" in record.getMessage() for record in told)
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["28", "30"]


def test_a_full_disk_stops_a_run_that_shall_stop(quick_config, tmp_path, monkeypatch):
  quick_config.checkpoint.on_error = "stop"
  fail_to_write(monkeypatch, [4])
  with pytest.raises(OSError, match="the checkpoint of step 4 cannot be written"):
    loop.train(quick_config, tmp_path)
  assert os.listdir(tmp_path / "checkpoints") == ["2"]


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(quick_config, tmp_path, monkeypatch):
  fail_to_write(monkeypatch, [8])
  with pytest.raises(OSError, match="the checkpoint of step 8 cannot be written"):
    loop.train(quick_config, tmp_path)


def test_what_a_dead_process_left_unfinished_is_cleared(quick_config, whole):
  workdir, end = whole
  left = workdir / "checkpoints" / "6.orbax-checkpoint-tmp"
  shutil.copytree(workdir / "checkpoints" / "4", left)
  state = loop.train(quick_config, workdir)
  chex.assert_trees_all_equal(jax.device_get(state), end)
  assert not left.exists()


def test_a_state_that_is_not_finite_is_not_saved(quick_config, tmp_path, caplog):
  run = prepare.prepare(quick_config, tmp_path)
  run.pipeline.close()
  state = loop.first_state(run)
  broken = state.replace(student=jax.tree.map(lambda x: x + np.inf, state.student))
  with Writer(tmp_path, keep=2, keep_every=0) as writer:
    assert writer.save(1, state, {}, quick_config)
    assert not writer.save(2, broken, {}, quick_config)
  assert os.listdir(tmp_path / "checkpoints") == ["1"]
  assert "the state after step 2 is not saved: 1 of its arrays are not finite" in caplog.text


def test_the_reason_is_found_among_what_libraries_say():
  try:
    try:
      raise ValueError('RESOURCE_EXHAUSTED: Error writing "x": No space left on device [os_error]')
    except ValueError as error:
      raise RuntimeError("Checkpointer failed") from error
  except RuntimeError as error:
    assert reason(error) == "No space left on device"
  assert reason(OSError(122, "Disk quota exceeded")) == "Disk quota exceeded"
  assert reason(RuntimeError("a\nb")) == "RuntimeError: a b"
