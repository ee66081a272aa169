"""What happens to a run from outside: signals, vanished data, observers that fail, a second run."""

import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import chex
import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data import lock
from dinov3_jax.train import evaluation, hooks, loop, prepare, watching

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def method(stand_in):
  return stand_in


@pytest.fixture
def config(quick_config):
  quick_config.checkpoint.every = 3750  # so that only what ends a run saves
  return quick_config


def saved(workdir):
  return sorted(int(name) for name in os.listdir(workdir / "checkpoints") if name.isdigit())


def lines_of(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_data_that_goes_away_costs_no_step(config, method, quick_images, tmp_path):
  undisturbed = loop.train(config, tmp_path / "calm")
  images = pathlib.Path(shutil.copytree(quick_images, tmp_path / "images"))
  config.data.source = str(images)
  method.at = {3: lambda: images.rename(tmp_path / "elsewhere")}
  with pytest.raises(Exception, match="no more batches can be made: the folder of") as caught:
    loop.train(config, tmp_path / "run")
  assert "\n" not in str(caught.value)
  (step,) = saved(tmp_path / "run")
  assert 3 <= step < 8
  method.at = {}
  (tmp_path / "elsewhere").rename(images)
  chex.assert_trees_all_equal(loop.train(config, tmp_path / "run"), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_to_stop_saves(config, method, tmp_path, number):
  method.at = {3: lambda: os.kill(os.getpid(), number)}
  run = prepare.prepare(config, tmp_path)
  loop.run(run)
  assert run.stopped == number and saved(tmp_path) == [3]


def test_a_signal_that_is_ignored_stays_ignored(config, method, tmp_path):
  """As SIGHUP is for a command under nohup."""
  former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    method.at = {3: lambda: os.kill(os.getpid(), signal.SIGHUP)}
    assert int(loop.train(config, tmp_path).step) == 8
  finally:
    signal.signal(signal.SIGHUP, former)


def test_time_alone_makes_a_checkpoint_due(config, method, tmp_path):
  config.checkpoint.update(minutes=1e-9, keep=10)
  loop.train(config, tmp_path)
  assert saved(tmp_path) == list(range(1, 9))


class Broken:
  """An observer of which nothing works."""

  def __init__(self, *_, **__):
    pass

  def __call__(self, step, state, metrics):
    raise KeyError("no such thing")

  def flush(self):
    raise OSError(5, "Input/output error")

  def close(self):
    raise RuntimeError("cannot close")


@pytest.mark.parametrize("module, name", [
  (hooks, "TensorBoard"), (hooks, "JsonLines"), (hooks, "LogLine"), (hooks, "Profile"),
  (evaluation, "Evaluation")])
def test_nothing_that_watches_can_end_a_run(config, quick_images, tmp_path, monkeypatch, caplog,
                                            module, name):
  monkeypatch.setattr(module, name, Broken)
  if hasattr(watching, name):
    monkeypatch.setattr(watching, name, Broken)
  config.evals.update(every=2, image_size=16, picture_size=16, knn_k=1)
  config.data.source = labelled(tmp_path / "labelled")
  undisturbed = loop.train(config, tmp_path / "run", profile=2)
  assert int(undisturbed.step) == 8 and saved(tmp_path / "run") == [8]
  told = [record.getMessage() for record in caplog.records if " failed" in record.getMessage()]
  assert told and all("\n" not in line for line in told)
  assert any("KeyError: 'no such thing'), time 1; training goes on" in line for line in told)
  assert any("failed beside the training: " in record.getMessage() for record in caplog.records)


def test_what_cannot_even_be_set_up_is_a_line(config, tmp_path, monkeypatch, caplog):
  def refuse(*_, **__):
    raise AttributeError("patch_size")

  for module, name in ((watching, "Evaluation"), (watching, "Health"), (hooks, "TensorBoard")):
    monkeypatch.setattr(module, name, refuse)
  config.evals.update(every=2, image_size=16, picture_size=16, knn_k=1)
  config.health.images = 4
  config.data.source = labelled(tmp_path / "labelled")
  assert int(loop.train(config, tmp_path / "run").step) == 8
  told = [record.getMessage() for record in caplog.records]
  for name in ("evaluation", "health", "TensorBoard"):
    assert f"{name} cannot be set up (AttributeError: patch_size); training goes on without" in told


def labelled(folder: pathlib.Path, **damaged: bytes) -> str:
  """Images of two classes in train and val."""
  rng = np.random.default_rng(0)
  for split, count in (("train", 12), ("val", 4)):
    for i in range(count):
      path = folder / split / "ab"[i % 2] / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
  return str(folder)


@pytest.fixture
def evaluated(config, tmp_path, monkeypatch):
  """Evaluations of the stand-in, whose features are pixels."""
  def make_tokens(config, mesh):
    def tokens(backbone, images, name, count=None):
      flat = np.asarray(images, np.float32).reshape(len(images), -1)
      return flat[:, :8] if name == "cls" else flat[:count].reshape(len(flat[:count]), 4, -1)
    return tokens

  monkeypatch.setattr(evaluation, "_make_tokens", make_tokens)
  config.evals.update(every=2, image_size=16, picture_size=16, knn_k=1)
  config.data.source = labelled(tmp_path / "labelled")
  return config


def test_held_out_images_that_are_all_damaged_are_a_line(evaluated, tmp_path, caplog):
  for path in (tmp_path / "labelled" / "val").rglob("*.png"):
    path.write_bytes(b"no picture")
  assert int(loop.train(evaluated, tmp_path / "run").step) == 8
  assert "evaluation failed at step 2 (ValueError: no image that has a label can be read)" in (
    caplog.text)


def test_held_out_images_without_classes_are_a_line(evaluated, tmp_path, caplog):
  """ImageNet as it is downloaded: train in folders of classes, val flat."""
  caplog.set_level(logging.INFO)
  for path in list((tmp_path / "labelled" / "val").rglob("*.png")):
    path.rename(tmp_path / "labelled" / "val" / path.name)
  for folder in "ab":
    (tmp_path / "labelled" / "val" / folder).rmdir()
  assert int(loop.train(evaluated, tmp_path / "run").step) == 8
  assert not any("knn_top1" in line for line in lines_of(tmp_path / "run"))


def test_a_file_in_the_place_of_pictures_costs_the_pictures_alone(evaluated, tmp_path, caplog):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "pictures").write_text("mine")
  assert int(loop.train(evaluated, tmp_path / "run").step) == 8
  assert (tmp_path / "run" / "pictures").read_text() == "mine"
  assert all("knn_top1" in line for line in lines_of(tmp_path / "run") if line["step"] % 2 == 0)
  assert "evaluation failed at step 2" in caplog.text


def test_the_state_is_saved_before_it_is_looked_at(evaluated, method, tmp_path, monkeypatch):
  """What a kill amid an evaluation has cost is evaluated at the next start, once."""
  evaluated.checkpoint.every = 2
  calls, evaluate = [], evaluation.Evaluation.__call__

  def killed(self, step, state, metrics):
    if step == 4:
      raise SystemExit("killed")
    evaluate(self, step, state, metrics)

  monkeypatch.setattr(evaluation.Evaluation, "__call__", killed)
  with pytest.raises(SystemExit):
    loop.train(evaluated, tmp_path / "run")
  assert saved(tmp_path / "run") == [2, 4]
  assert "knn_top1" not in lines_of(tmp_path / "run")[-1]

  def counted(self, step, state, metrics):
    before = dict(metrics)
    evaluate(self, step, state, metrics)
    if metrics != before:
      calls.append(step)

  monkeypatch.setattr(evaluation.Evaluation, "__call__", counted)
  loop.train(evaluated, tmp_path / "run")
  assert calls == [4, 6, 8]
  assert [line["step"] for line in lines_of(tmp_path / "run")] == [2, 4, 6, 8]
  assert all("knn_top1" in line and "loss" in line for line in lines_of(tmp_path / "run"))


def test_a_second_run_in_the_folder_is_refused_by_name(config, tmp_path):
  with (lock.FolderLock(tmp_path, "a training run"),
        pytest.raises(BlockingIOError, match=rf"in use by a training run \(process {os.getpid()}")):
    loop.train(config, tmp_path)
  assert not (tmp_path / "checkpoints").exists()
  assert int(loop.train(config, tmp_path).step) == 8
  assert int(loop.train(config, tmp_path).step) == 8  # the first has let go


def test_a_dead_process_leaves_no_lock(config, tmp_path):
  holder = subprocess.Popen(
    [sys.executable, "-c", "import sys, time; from dinov3_jax.data.lock import FolderLock\n"
     f"with FolderLock({str(tmp_path)!r}, 'a training run'): print('held', flush=True); "
     "time.sleep(60)"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
  assert holder.stdout.readline() == "held\n"
  with pytest.raises(BlockingIOError, match=f"process {holder.pid} on "):
    prepare.prepare(config, tmp_path)
  holder.kill()
  holder.wait()
  assert int(loop.train(config, tmp_path).step) == 8


def test_fewer_steps_than_were_done_change_nothing(config, tmp_path):
  loop.train(config, tmp_path)
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
  config.train.steps = 6
  with pytest.raises(ValueError, match=r"has done 8 steps, more than train\.steps=6"):
    loop.train(config, tmp_path)
  assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")
                    if path.is_file()}


def test_a_spike_defers_a_checkpoint_until_it_is_over(config, method, tmp_path, caplog):
  config.train.steps, config.log_every = 70, 10
  config.checkpoint.update(every=60, keep=10)
  method.norms = {60: 1e3, 61: 1e3}
  loop.train(config, tmp_path)
  assert saved(tmp_path) == [62, 70]
  assert "step 60 is far outside the steps before: grad_norm/backbone is 1000" in caplog.text


def test_what_is_finite_and_useless_replaces_no_checkpoint(config, method, tmp_path):
  """A rise that does not end: the newest checkpoint from before it stays, and is named."""
  config.train.steps = 90
  config.checkpoint.update(every=10, keep=1)
  method.norms = {step: 1e4 for step in range(65, 91)}
  with pytest.raises(FloatingPointError, match=r"since step 65, grad_norm/backbone is 1e\+04, .*"
                     r"the newest checkpoint from before step 65 is .*/checkpoints/60: lower"):
    loop.train(config, tmp_path)
  assert saved(tmp_path) == [60]
  method.norms = {}  # the cause is mended
  assert int(loop.train(config, tmp_path).step) == 90


def test_steps_that_are_not_finite_name_the_checkpoint_from_before(config, method, tmp_path):
  config.checkpoint.every = 2
  method.bad_steps = (5, 6, 7)
  with pytest.raises(FloatingPointError, match=r"step 7 is number 3 in a row .*; the newest "
                     r"checkpoint from before step 5 is .*/checkpoints/4: lower the learning"):
    loop.train(config, tmp_path)
  assert saved(tmp_path) == [2, 4]


def test_tensorboard_is_flushed_before_a_checkpoint(config, method, tmp_path, monkeypatch):
  order = []
  save, flush = loop.Writer.save, hooks.TensorBoard.flush
  monkeypatch.setattr(loop.Writer, "save",
                      lambda self, step, *a: (order.append(step), save(self, step, *a))[1])
  monkeypatch.setattr(hooks.TensorBoard, "flush",
                      lambda self: (order.append("flush"), flush(self))[1])
  config.checkpoint.every = 4
  loop.train(config, tmp_path)
  assert order == ["flush", 4, "flush", 8]


def test_training_from_python_says_what_it_does(config, tmp_path):
  """In a process of its own, where nobody has set up logging."""
  script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from configs import base
from dinov3_jax.train import loop
config = base.get_config()
config.update_from_flattened_dict({json.dumps({"data.source": "/nowhere"})})
try:
  loop.train(config, {str(tmp_path / "run")!r})
except ValueError as error:
  import jax, logging
  logging.getLogger("dinov3_jax.x").info("heard")
  print(jax.config.jax_compilation_cache_dir)
"""
  environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "XLA_FLAGS": ""}
  del environment["JAX_COMPILATION_CACHE_DIR"]
  done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True,
                        text=True, timeout=120)
  heard, cache = done.stdout.splitlines()
  assert heard.endswith(" heard") and cache == str(tmp_path / "dinov3_jax" / "xla")
  assert time.strptime(heard.split()[0], "%H:%M:%S")
