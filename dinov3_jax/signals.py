"""What Ctrl-C, SIGTERM and SIGHUP do to a command.

A command begins, before its slow imports, with

  if __name__ == "__main__":
    from dinov3_jax import signals
    signals.exit_at_once()

From then on a signal ends the process with one line and the exit code 128 + its number. There is no
KeyboardInterrupt: one that is raised inside a callback of a library is printed and forgotten, and
the command goes on. Where there is something to save, `with signals.Noted() as stop:` notes the
signal instead, and the command looks at `stop.number` between two steps of its work.

A signal that is ignored when the process starts stays so: `nohup` and the shells' background jobs
rely on it.
"""

import contextlib
import os
import signal
import sys
import threading

NUMBERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
                if hasattr(signal, name))


def exit_at_once(line: str = "interrupted"):
  """From here on a signal ends the process, with `line` on the standard error stream.

  Nothing else is done on the way out: no `finally`, no `atexit`, no buffers written.
  """
  # What shares memory with workers is cleared when the process is gone, by a process that Python
  # starts with these options; it need not tell that this was left to it.
  sys.warnoptions.append("ignore:resource_tracker:UserWarning")

  def handle(number, frame):
    _say(line)
    os._exit(128 + number)

  _install(handle)


class Noted:
  """Notes a signal, for a block of work that ends by itself in time; the second kills at once.

  Attributes:
    number: of the signal, 0 as long as there was none.
  """

  def __init__(self, line: str | None = "saving, then stopping; once more to stop at once"):
    """`line` is printed on the standard error stream when the signal comes, unless it is None."""
    self.number, self._line, self._former = 0, line, {}

  def __enter__(self):
    self._former = _install(self._handle)
    return self

  def _handle(self, number, frame):
    self.number = self.number or number
    for other in self._former:
      signal.signal(other, signal.SIG_DFL)
    if self._line:
      _say(self._line)

  def __exit__(self, *_):
    for number, handler in self._former.items():
      signal.signal(number, handler)


def _say(line: str):
  with contextlib.suppress(OSError):  # the terminal may be gone; that may be what the signal says
    os.write(2, f"\n{line}\n".encode())


def _install(handle) -> dict:
  """Sets the handler of the signals that are not ignored; returns what handled them before."""
  if threading.current_thread() is not threading.main_thread():
    return {}  # only the main thread may
  former = {number: signal.getsignal(number) for number in NUMBERS}
  former = {number: handler for number, handler in former.items()
            if handler not in (signal.SIG_IGN, None)}  # None: set by no Python code
  for number in former:
    signal.signal(number, handle)
  return former
