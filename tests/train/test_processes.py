import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.train import processes

ROOT = pathlib.Path(__file__).parents[2]
MESH = ["--config.mesh.data=-1", "--config.mesh.fsdp=2"]


def start(recipe, workdir, devices, *settings, **environment):
  """The command, on as many fake devices."""
  environment = dict(os.environ, **environment)
  environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
  command = [sys.executable, "-m", "dinov3_jax.main", f"--config={recipe}", *MESH,
             f"--workdir={workdir}", *settings]
  return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def start_pair(recipe, workdir, *settings):
  """Two processes of four devices."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  return [start(recipe, workdir, 4, *settings, JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i)) for i in range(2)]


@pytest.mark.slow
def test_two_processes_end_where_one_does(tiny_recipe, stored, tmp_path):
  """Four devices each against eight of one; data, evaluation and checkpoints included."""
  pair = start_pair(tiny_recipe, tmp_path / "two")
  ended = [(*process.communicate(timeout=300), process.returncode) for process in pair]
  assert [code for *_, code in ended] == [0, 0], ended
  assert "on 8 x cpu" in ended[0][0] and "on 8 x cpu" not in ended[1][0]  # one of them speaks
  out, errors = start(tiny_recipe, tmp_path / "one", 8).communicate(timeout=300)
  assert "on 8 x cpu" in out, errors

  one, two = stored(tmp_path / "one"), stored(tmp_path / "two")
  assert one.keys() == two.keys()
  for name, value in one.items():
    norm = np.linalg.norm(value)
    np.testing.assert_allclose(np.linalg.norm(two[name] - value), 0, atol=1e-3 * norm, err_msg=name)
  # Written by both, and once.
  logs = [[json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()]
          for run in ("one", "two")]
  assert [[line["step"] for line in log] for log in logs] == [[*range(1, 9)]] * 2
  # Each of the two reads half of the held-out images.
  assert logs[0][-1]["knn_top1"] == logs[1][-1]["knn_top1"]
  names = [sorted(path.name for path in (tmp_path / run / "pictures").iterdir())
           for run in ("one", "two")]
  assert names[0] == names[1] and len(names[0]) == 2
  for name in names[0]:
    one, two = (np.asarray(Image.open(tmp_path / run / "pictures" / name), np.int32)
                for run in ("one", "two"))
    np.testing.assert_allclose(two, one, atol=3)


@pytest.mark.parametrize("variables", [
    dict(JAX_COORDINATOR_ADDRESS="127.0.0.1:1"),
    dict(JAX_COORDINATOR_ADDRESS="host", JAX_NUM_PROCESSES="1", JAX_PROCESS_ID="0"),
    dict(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="0"),
    dict(JAX_COORDINATOR_ADDRESS="127.0.0.1:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="2"),
    dict(JAX_COORDINATOR_ADDRESS="127.0.0.1:1", JAX_NUM_PROCESSES="two", JAX_PROCESS_ID="0")])
def test_incomplete_variables_are_an_error(monkeypatch, variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match="need HOST:PORT, their number, and this one's from 0 on"):
    processes.join(False)


def test_nothing_to_find_is_an_error(monkeypatch, tiny_recipe, tmp_path):
  for name in os.environ:
    if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_")):
      monkeypatch.delenv(name)
  process = start(tiny_recipe, tmp_path / "run", 1, "--distributed")
  errors = process.communicate(timeout=100)[1]
  assert errors == ("error: --distributed finds no TPU pod, GKE, Slurm or Open MPI: set "
                    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID\n")
  assert process.returncode == 1


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step(tiny_recipe, tmp_path):
  workdir = tmp_path / "run"
  pair = start_pair(tiny_recipe, workdir, "--config.train.steps=100000", "--config.evals.every=0",
                    "--config.checkpoint.every=100000")
  log = workdir / "metrics.jsonl"
  deadline = time.monotonic() + 200
  while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
    time.sleep(0.5)
  pair[1].send_signal(signal.SIGTERM)
  ended = [(*process.communicate(timeout=200), process.returncode) for process in pair]
  assert [code for *_, code in ended] == [143, 143], ended
  last, = (path.name for path in (workdir / "checkpoints").iterdir())
  assert f"stopped by SIGTERM after step {last}" in ended[0][0]
