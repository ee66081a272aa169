"""Signals that ask a run to stop."""

import contextlib
import os
import signal
import threading

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
                 if hasattr(signal, name))


class StopSignals:
  """Lets Ctrl-C, SIGTERM and SIGHUP end training in time; the same signal again kills at once.

  A signal that is ignored, as SIGHUP is under `nohup`, stays so. In a thread other than the main
  one no handler can be set, and signals do what they did before.

  Attributes:
    number: that of the signal, 0 without one.
  """

  def __enter__(self):
    self.number, self._former = 0, {}
    if threading.current_thread() is threading.main_thread():
      for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
          self._former[number] = signal.signal(number, self._handle)
    return self

  def _handle(self, number, frame):
    self.number = number
    signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError):  # the terminal may be gone
      os.write(2, b"\nsaving, then stopping; once more to stop at once, without saving\n")

  def __exit__(self, *_):
    for number, handler in self._former.items():
      signal.signal(number, handler)
