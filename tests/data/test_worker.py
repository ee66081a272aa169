"""A worker leaves Ctrl-C to its parent, ends with it, and keeps memory for the next image."""

import platform
import subprocess
import sys
import time

import pytest

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


IMAGES = """
import resource, sys
from dinov3_jax.data.worker import keep_freed_memory
if {keep}:
  keep_freed_memory()

def pages():
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(20):
  images = [bytes(size) for size in 8 * [2_000_000]]
  del images
before = pages()
for _ in range(20):
  images = [bytes(size) for size in 8 * [2_000_000]]
  del images
print((pages() - before) // 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_pages_of_one_image_serve_the_next():
  kept, returned = (int(subprocess.run([sys.executable, "-c", IMAGES.format(keep=keep)], check=True,
                                       capture_output=True, text=True).stdout)
                    for keep in (True, False))
  assert kept < 20 < returned
