"""Signals that come while training starts, before there is anything to save."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 4  # about what it takes until the first step


def wait_for_handler(process):
  """Until the process has SIGTERM in its own hands, which is the first thing it does."""
  bit = 1 << (signal.SIGTERM - 1)
  while process.poll() is None:
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    if int(status.split("SigCgt:")[1].split()[0], 16) & bit:
      return
    time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM] * 2)
def test_a_signal_at_any_moment_is_a_line_and_its_exit_code(tiny_recipe, tmp_path, number):
  after = random.uniform(0, SECONDS)
  print(f"{after:.3f} s after the first import")
  environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
  environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"
  process = subprocess.Popen(
    [sys.executable, "-m", "dinov3_jax.main", f"--config={tiny_recipe}",
     f"--workdir={tmp_path / 'run'}", "--config.train.steps=100000", "--config.data.workers=2"],
    cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  wait_for_handler(process)
  time.sleep(after)
  process.send_signal(number)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 128 + number, err
  assert "Traceback" not in out + err and "leaked" not in err
  assert err.strip() in ("interrupted before the first step",
                         "saving, then stopping; once more to stop at once, without saving")
