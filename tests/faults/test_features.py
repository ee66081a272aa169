"""Whole commands that are killed, stopped, started twice, and asked for help."""

import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.rows import read

# The command with a small network, and images that take their time.
COMMAND = """
import sys, time
from dinov3_jax import signals
signals.exit_at_once()
from dinov3_jax import features
from dinov3_jax.data import rows
from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.models.variants import VARIANTS, Variant

VARIANTS["vits16"] = Variant(dict(width=32, depth=1, num_heads=2, patch_size=8), {})
prepare, pause, rows.COMMIT_SECONDS = Preprocess.__call__, float(sys.argv.pop(1)), float(
    sys.argv.pop(1))
Preprocess.__call__ = lambda self, image: time.sleep(pause) or prepare(self, image)
sys.exit(features.main())
"""
IMAGES = 60


@pytest.fixture
def folder(tmp_path):
  for i in range(IMAGES):
    pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
    (tmp_path / "images").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(tmp_path / "images" / f"{i:03}.png")
  return tmp_path


def start(folder, pause=0.0, commit=0.0, out="f.npy", stderr=subprocess.PIPE, **options):
  """The command, which saves every `commit` seconds; `pause` is that of each image."""
  environment = dict(os.environ, JAX_PLATFORMS="cpu",
                     XLA_FLAGS="--xla_backend_optimization_level=0")
  return subprocess.Popen(
    [sys.executable, "-c", COMMAND, str(pause), str(commit), "images", "--weights", "random",
     "--model", "vits16", "--size", "64", "--tokens", "patches", "--batch-size", "4", "--out", out],
    cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, **options)


def end(process):
  try:
    out, err = process.communicate(timeout=60)
  finally:
    process.kill()
  return process.returncode, out, err


def wait(process, condition):
  until = time.monotonic() + 60
  while not condition():
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.01)


def done(folder):
  """Images that the saved state counts."""
  state = folder / "f.npy.partial" / "state.json"
  return json.loads(state.read_text())["done"] if state.exists() else 0


@pytest.mark.slow
def test_kills_and_stops_change_no_row(folder):
  undisturbed = start(folder, out="whole.npy")
  rows = folder / "f.npy.partial" / "patches"
  process = start(folder, pause=0.1, commit=1000)
  try:  # killed when rows are in the file, and none is saved
    wait(process, lambda: rows.exists() and rows.stat().st_size)
    process.kill()
    process.communicate()
    assert done(folder) == 0 and rows.stat().st_size

    process = start(folder, pause=2.0)  # so that it outlasts the next command, however slow
    wait(process, lambda: done(folder) > 8)
    code, _, error = end(start(folder))  # a second one meanwhile
    assert code == 1 and error.count("\n") == 1
    assert f"f.npy.partial is in use by features (process {process.pid} on " in error
    process.kill()
    process.communicate()
    before = done(folder)
    assert 8 < before < IMAGES

    process = start(folder, pause=0.2, commit=1000)
    size = rows.stat().st_size
    wait(process, lambda: rows.stat().st_size > size + 2**14)
    process.send_signal(signal.SIGTERM)
    code, _, error = end(process)
    assert code == 143 and "Traceback" not in error
    assert error.rstrip().endswith("error: interrupted; the same command goes on from here")
    assert before < done(folder) < IMAGES
  finally:
    process.kill()
    process.communicate()

  code, out, _ = end(start(folder))
  assert code == 0 and f"of {IMAGES} images" in out
  assert end(undisturbed)[0] == 0
  assert sorted(path.name for path in folder.iterdir()) == [
    "f.json", "f.npy", "images", "whole.json", "whole.npy"]
  (arrays, names), (whole, _) = read(folder / "f.npy"), read(folder / "whole.npy")
  assert names == [f"images/{i:03}.png" for i in range(IMAGES)]
  np.testing.assert_array_equal(arrays["patches"], whole["patches"])


def test_a_closed_terminal_saves_and_stops(folder):
  ours, theirs = pty.openpty()
  process = start(folder, pause=0.2, stderr=theirs, start_new_session=True)
  os.close(theirs)
  try:
    wait(process, lambda: done(folder) > 8)
    before = done(folder)
    os.close(ours)  # first the stream ends
    wait(process, lambda: done(folder) > before)
    process.send_signal(signal.SIGHUP)  # then the signal says so
    assert process.wait(60) == 129
  finally:
    process.kill()
    process.communicate()
  assert before < done(folder) < IMAGES


def catches_sigterm(process):
  status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
  return int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize("command", [
  "features images --weights random --model vits16 --out f.npy",
  "visualize images/000.png --weights random --model vits16",
  "report --workdir nowhere",
  "export nowhere --format hf --out out"])
@pytest.mark.parametrize("number, after", [(signal.SIGINT, 0), (signal.SIGTERM, 0.4)])
def test_a_signal_at_the_start_prints_no_trace(folder, command, number, after):
  process = subprocess.Popen([sys.executable, "-m", *f"dinov3_jax.{command}".split()], cwd=folder,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  try:
    wait(process, lambda: catches_sigterm(process))
    time.sleep(after)
    process.send_signal(number)
  finally:
    code, out, error = end(process)
  assert (code, out, error) == (128 + number, "", "\ninterrupted\n")


@pytest.mark.parametrize("command", ["features", "visualize", "report"])
@pytest.mark.parametrize("flag, answer", [
  ("-h", "usage: python -m dinov3_jax."), ("--help", "usage: python -m dinov3_jax."),
  ("--version", "dinov3_jax 0.")])
def test_help_comes_without_jax(command, flag, answer):
  arguments = ["-X", "importtime", "-m", f"dinov3_jax.{command}", flag]
  process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
  assert process.returncode == 0 and process.stdout.startswith(answer)
  imported = {line.split("|")[-1].strip() for line in process.stderr.splitlines()}
  assert "argparse" in imported and not {"jax", "flax", "torch"} & imported
