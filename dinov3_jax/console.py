"""Our own lines on a terminal or in a log."""

import contextlib
import logging
import sys


class Console(logging.Handler):
  """Prints where a progress bar can make room: it replaces `sys.stdout` and `sys.stderr`."""

  def emit(self, record: logging.LogRecord):
    stream = sys.stdout if record.levelno <= logging.INFO else sys.stderr
    line = self.format(record)
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone; the run goes on
      try:
        print(line, flush=True, file=stream)
      except UnicodeEncodeError:  # a terminal that cannot show a path of the user's
        shown = line.encode(stream.encoding, "backslashreplace").decode(stream.encoding)
        print(shown, flush=True, file=stream)


def set_up(level: int = logging.INFO):
  """Time and message for our own lines; of the libraries, warnings alone."""
  logging.getLogger().handlers = [_make()]
  logging.getLogger().setLevel(logging.WARNING)
  logging.getLogger("dinov3_jax").setLevel(level)


def set_up_unless_done():
  """Prints our own lines, unless somebody else has said what is to be logged where."""
  ours = logging.getLogger("dinov3_jax")
  # Handlers say nothing: libraries put theirs on the root logger when they are imported.
  if not ours.handlers and not ours.isEnabledFor(logging.INFO):
    ours.addHandler(_make())
    ours.setLevel(logging.INFO)
    ours.propagate = False


def _make() -> Console:
  console = Console()
  console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
  return console
