"""Programs that compile for TPUs, which the tests run in a process of their own."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def run_for_tpus(program: str) -> list[str]:
  """The lines that Python code prints which compiles for TPUs without having any."""
  pytest.importorskip("libtpu", reason="compiling for TPUs needs `pip install -e .[tpu]`")
  environment = {key: value for key, value in os.environ.items()
                 if not key.startswith(("XLA_FLAGS", "JAX_COMP"))}
  environment |= dict(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1",
                      TPU_ACCELERATOR_TYPE="v5p-8", TPU_WORKER_HOSTNAMES="localhost",
                      TPU_STDERR_LOG_LEVEL="3", PYTHONPATH=str(ROOT))
  done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True,
                        text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()
