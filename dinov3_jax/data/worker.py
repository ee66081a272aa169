"""What a process that makes batches or files for another one does first."""

import ctypes
import os
import signal
import threading
import warnings
from multiprocessing import connection, parent_process

# Parameters of glibc's mallopt by their numbers. 32 MiB is the most that the first one takes.
M_MMAP_THRESHOLD, OWN_MAPPING = -3, 2**25
M_TRIM_THRESHOLD, KEPT = -1, 2**26


def keep_freed_memory() -> None:
  """Has this process keep up to 64 MiB of what it frees, for the images to come.

  glibc would return it to the system, and each page of the next image would come anew, filled with
  zeros. Blocks of 32 MiB or more are returned still. Where there is no glibc, nothing changes.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt:
    mallopt(M_MMAP_THRESHOLD, OWN_MAPPING)
    mallopt(M_TRIM_THRESHOLD, KEPT)


def start_worker(*_) -> None:
  """Leaves Ctrl-C to the main process, never outlives it, is silent on odd metadata, and keeps the
  memory of images."""
  keep_freed_memory()
  warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = parent_process()

  def wait():
    connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
