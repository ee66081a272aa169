"""A worker leaves Ctrl-C to its parent and ends with it."""

import subprocess
import sys
import time

PARENT = """
import multiprocessing, os, signal, time
from dinov3_jax.data.worker import start_worker

def work():
  start_worker()
  os.kill(os.getpid(), signal.SIGINT)
  print(os.getpid(), flush=True)
  time.sleep(60)

if __name__ == "__main__":
  multiprocessing.get_context("spawn").Process(target=work).start()
  time.sleep(60)
"""


def test_it_survives_ctrl_c_but_not_its_parent(tmp_path):
  (tmp_path / "parent.py").write_text(PARENT)
  parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE,
                            text=True)
  number = int(parent.stdout.readline())
  parent.kill()
  parent.wait()
  for _ in range(200):
    try:
      with open(f"/proc/{number}/stat") as file:
        if file.read().rpartition(")")[2].split()[0] == "Z":
          return
    except OSError:
      return
    time.sleep(0.05)
  raise AssertionError("it is still there")
