"""What a process that makes batches or files for another one does first."""

import os
import signal
import threading
import warnings
from multiprocessing import connection, parent_process


def start_worker(*_) -> None:
  """Leaves Ctrl-C to the main process, never outlives it, and is silent on odd metadata."""
  warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = parent_process()

  def wait():
    connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
