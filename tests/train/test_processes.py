import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from dinov3_jax.train import processes

ROOT = pathlib.Path(__file__).parents[2]
MESH = ["--config.mesh.data=-1", "--config.mesh.fsdp=2"]


def start(recipe, workdir, devices, **environment):
  """The command, on as many fake devices."""
  environment = dict(os.environ, **environment)
  environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
  command = [sys.executable, "-m", "dinov3_jax.main", f"--config={recipe}", *MESH,
             f"--workdir={workdir}"]
  return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def free_port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


@pytest.mark.slow
def test_two_processes_end_where_one_does(tiny_recipe, stored, tmp_path):
  """Four devices each against eight of one; data, evaluation and checkpoints included."""
  address = f"127.0.0.1:{free_port()}"
  pair = [start(tiny_recipe, tmp_path / "two", 4, JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i)) for i in range(2)]
  ended = [(*process.communicate(timeout=300), process.returncode) for process in pair]
  assert [code for *_, code in ended] == [0, 0], ended
  assert "on 8 x cpu" in ended[0][0] and "on 8 x cpu" not in ended[1][0]  # one of them speaks
  out, errors = start(tiny_recipe, tmp_path / "one", 8).communicate(timeout=300)
  assert "on 8 x cpu" in out, errors

  one, two = stored(tmp_path / "one"), stored(tmp_path / "two")
  assert one.keys() == two.keys()
  for name, value in one.items():
    np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
  # Written by both, and once.
  logs = [(tmp_path / run / "metrics.jsonl").read_text().count("\n") for run in ("one", "two")]
  assert logs == [8, 8]
  assert len(list((tmp_path / "two" / "pictures").iterdir())) == 2


@pytest.mark.parametrize("variables", [
    dict(JAX_COORDINATOR_ADDRESS="127.0.0.1:1"), dict(JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="0"),
    dict(JAX_COORDINATOR_ADDRESS="127.0.0.1:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="2"),
    dict(JAX_COORDINATOR_ADDRESS="127.0.0.1:1", JAX_NUM_PROCESSES="two", JAX_PROCESS_ID="0")])
def test_incomplete_variables_are_an_error(monkeypatch, variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match="need HOST:PORT, their number, and this one's from 0 on"):
    processes.join(False)


def test_nothing_to_find_is_an_error():
  with pytest.raises(ValueError, match="finds no TPU pod, Kubernetes, Slurm or Open MPI: set JAX_"):
    processes.join(True)


def test_alone_a_number_is_its_own_greatest():
  assert processes.greatest(15) == 15
