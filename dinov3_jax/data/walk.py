"""The images below a folder, and how their names are written."""

import collections
import logging
import os
import re
from collections.abc import Iterator

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
REPEATS = 8  # times that one link is followed, where links lead to it in many ways


def printable(name: str | os.PathLike) -> str:
  """A path as valid UTF-8 on one line, for logs, JSON and error messages.

  File names are bytes, which Python keeps as lone surrogates where they are no UTF-8. Here such
  bytes and control characters become `\\xNN`, and all other names stay as they are. Open files by
  the true name.
  """
  try:
    data = os.fsencode(name)
  except UnicodeEncodeError:  # surrogates that do not come from a file system
    data = os.fspath(name).encode("utf-8", "backslashreplace")
  text = data.decode("utf-8", "backslashreplace")
  return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def images_below(folder: str | os.PathLike, others: collections.Counter | None = None,
                 suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[str]:
  """The images at any depth below a folder, known by their suffixes, in no particular order.

  Links to files and folders are followed. A link to a folder that the path to it already goes
  through, or that lies above one, is a cycle and is left out. Two links to the same folder are both
  followed, so that its images have two paths; but where links to folders with links multiply, each
  is followed `REPEATS` times at most, along the paths with the fewest links. Hidden files and
  folders, whose names begin with a dot, are left out, and so is a folder that cannot be read, which
  is logged. A link that leads nowhere counts as a file: reading it says what is wrong.

  Args:
    folder: where to look.
    others: if given, counts the other files by suffix in lower case.
    suffixes: of images, in lower case.

  Yields:
    Paths relative to `folder`, with `/` between their parts. Names that are not valid UTF-8 have
    the surrogates of `os.fsdecode`; see `printable`.

  Raises:
    OSError: `folder` itself cannot be read.
  """
  root = os.fspath(folder)
  # Folders behind links wait, so that a link is first followed on the shortest way to it.
  waiting = collections.deque([("", _lineage(root))])
  followed, refused = collections.Counter(), []
  while waiting:
    start, lineage = waiting.popleft()
    below = [(start, lineage)]
    while below:
      base, lineage = below.pop()
      try:
        with os.scandir(os.path.join(root, base)) as entries:
          entries = sorted(entries, key=lambda entry: entry.name)  # for what is refused
      except OSError as error:
        if not base:
          raise
        log.warning("left out: the folder %s cannot be read (%s)",
                    printable(os.path.join(root, base)), error.strerror)
        continue
      for entry in entries:
        if entry.name.startswith("."):
          continue
        path = f"{base}/{entry.name}" if base else entry.name
        if _is_folder(entry):
          key = _identity(entry)
          if key is None or key in lineage:
            continue
          link = entry.stat(follow_symlinks=False)
          link = link.st_dev, link.st_ino
          if not entry.is_symlink():
            below.append((path, lineage | {key}))
          elif followed[link] < REPEATS:
            followed[link] += 1
            waiting.append((path, lineage | _lineage(entry.path)))
          else:
            refused.append(path)
        elif entry.name.lower().endswith(suffixes):
          if entry.is_symlink() or entry.is_file():
            yield path
        elif others is not None:
          others[os.path.splitext(entry.name)[1].lower()] += 1
  if refused:
    log.warning("left out below %s: %d ways through links that were followed %d times already, "
                "for example %s", printable(root), len(refused), REPEATS, printable(refused[0]))


def _is_folder(entry: os.DirEntry) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # a link to itself
    return False


def _identity(entry: os.DirEntry) -> tuple[int, int] | None:
  """Device and inode of a folder, behind any link; None where it vanished or may not be seen."""
  try:
    found = entry.stat()
  except OSError:
    return None
  return found.st_dev, found.st_ino


def _lineage(folder: str) -> frozenset[tuple[int, int]]:
  """The identities of a folder and of all folders above it."""
  path, identities = os.path.realpath(folder), []
  while True:
    try:
      found = os.stat(path)
    except OSError:
      break
    identities.append((found.st_dev, found.st_ino))
    if os.path.dirname(path) == path:
      break
    path = os.path.dirname(path)
  return frozenset(identities)
