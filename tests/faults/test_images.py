"""A run on images as people have them: started, stopped and ended by the command."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def images(tmp_path):
  """Class folders in train, val without any, and one of each thing that used to end a run."""
  root, rng = tmp_path / "images", np.random.default_rng(0)
  for i in range(40):
    path = root / "train" / ("cat", "train")[i % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = rng.integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(picture if i % 2 else picture[..., 0] * np.uint16(16)).save(path)
  (root / "val").mkdir()
  for i in range(4):
    Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8)).save(root / "val" / f"{i}.jpg")
  Image.new("RGB", (20_000, 1)).save(root / "val" / "line.png")
  Image.new("RGB", (1, 20_000)).save(root / "train" / "cat" / "line.png")
  (root / "train" / "cat" / "up").symlink_to(root)
  (root / "train" / "train" / "up").symlink_to(root / "train")
  (root / "val" / "notes.txt").touch()
  try:
    broken = root / "train" / os.fsdecode(b"caf\xe9")
    broken.mkdir()
    (broken / os.fsdecode(b"\xff.png")).write_bytes(b"damaged")
  except OSError:
    pass  # this file system takes UTF-8 alone
  return root


def start(recipe, images, workdir, *settings):
  environment = dict(os.environ, JAX_PLATFORMS="cpu")
  environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"  # the last one counts
  return subprocess.Popen(
    [sys.executable, "-m", "dinov3_jax.main", f"--config={recipe}", f"--workdir={workdir}",
     f"--config.data.source={images}", "--config.data.workers=2", "--config.data.max_damaged=0.2",
     *settings], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    text=True)


@pytest.mark.slow
def test_a_run_with_workers_stops_and_ends_quietly(tiny_recipe, images, tmp_path):
  workdir = tmp_path / "run"
  process = start(tiny_recipe, images, workdir, "--config.train.steps=100000",
                  "--config.evals.every=0", "--config.checkpoint.every=100000")
  log = workdir / "metrics.jsonl"
  deadline = time.monotonic() + 200
  while not (log.exists() and log.read_text().count("\n") > 2):
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  output, errors = process.communicate(timeout=100)
  assert process.returncode == 143 and "stopped by SIGTERM" in output
  last = json.loads(log.read_text().splitlines()[-1])["step"]

  process = start(tiny_recipe, images, workdir, f"--config.train.steps={last + 2}",
                  "--config.evals.every=1")
  output, more = process.communicate(timeout=200)
  assert process.returncode == 0, more
  assert "the folders train, val are splits" in output and "val has no labels" in output
  assert "no k-NN evaluation: the held-out images have no labels" in output
  for text in (errors, more):
    for unwanted in ("leaked", "Traceback", "Exception ignored", "resource_tracker"):
      assert unwanted not in text
  assert "left out 1 .txt files" in output and "data.depth=12" in more
