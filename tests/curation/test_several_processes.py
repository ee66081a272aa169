"""Steps of two processes of four devices each, against one of eight."""

import os
import pathlib
import socket
import subprocess
import sys

import chex
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def start(*arguments, devices, **environment):
  environment = dict(os.environ, PYTHONPATH=str(ROOT), **environment)
  environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
  return subprocess.Popen([sys.executable, "-m", "dinov3_jax.curate", *map(str, arguments)],
                          env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def run_pair(*arguments):
  """The standard outputs of two processes that work together."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  pair = [start(*arguments, devices=4, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(i)) for i in range(2)]
  ended = [(*process.communicate(timeout=200), process.returncode) for process in pair]
  assert [code for *_, code in ended] == [0, 0], ended
  return [out for out, *_ in ended]


@pytest.mark.slow
def test_two_processes_find_what_one_does(inputs, stored, tmp_path):
  for name in ("one", "two"):
    stored(tmp_path / name, inputs.POOL[:600])
  commands = [("cluster", "--levels", "12,4", "--rounds", 1, "--iterations", 5),
              ("cluster", "--levels", "3x5", "--name", "split", "--iterations", 5),
              ("dedup", "--threshold", 0.999)]
  for step, *rest in commands:
    outs = run_pair(step, "--dir", tmp_path / "two", *rest)
    # One of them speaks, beside Gloo, which connects the processes on CPUs.
    said = outs[0].splitlines()[-1]
    assert said.startswith(str(tmp_path / "two")) and str(tmp_path) not in outs[1]
    single = start(step, "--dir", tmp_path / "one", *rest, devices=8)
    assert single.communicate()[0].strip().split(":", 1)[1] == said.split(":", 1)[1]
  for file in tmp_path.glob("one/*/*.npy"):
    np.testing.assert_array_equal(np.load(file), np.load(tmp_path / "two" / file.relative_to(
      tmp_path / "one")))
  for name in ("clusters", "split"):
    file = pathlib.Path(name) / "level1" / "centroids.npy"
    chex.assert_trees_all_close(*(np.load(tmp_path / run / file) for run in ("one", "two")),
                                atol=1e-5)
  assert not list(tmp_path.glob("two/**/*.new"))
