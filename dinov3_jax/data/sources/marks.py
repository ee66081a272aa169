"""Whether the images of a source are those that they were when an earlier call read them."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from dinov3_jax.data.sources.base import Source
from dinov3_jax.data.walk import printable

NONE = (-1, -1)
THREADS = 8  # that look at files

Mark = tuple[int, int | str]


def file_mark(path: str | os.PathLike) -> Mark:
  """The mark of a file of this machine; `NONE` if it is not there."""
  try:
    stat = os.stat(path)
  except OSError:
    return NONE
  return stat.st_size, stat.st_mtime_ns


def mark(source: Source, index: int) -> Mark:
  """What tells whether an image has changed: the size of the file that it is in, and its time or
  tag; `NONE` where a source does not know."""
  own = getattr(source, "mark", None)
  return own(index) if own else NONE


def marks(source: Source, indices: Sequence[int]) -> list[Mark]:
  """The marks of images, in their order."""
  if not hasattr(source, "mark"):
    return [NONE] * len(indices)
  with ThreadPoolExecutor(THREADS) as threads:
    return list(threads.map(source.mark, indices))


def digest(marks: Iterable[Mark]) -> str:
  """A short text that stands for marks and their order."""
  found = hashlib.sha256()
  for size, time in marks:
    found.update(f"{size} {time}\n".encode())
  return found.hexdigest()[:32]


def check_names(source: Source, indices: Sequence[int], names: Sequence[str],
                left_out: Iterable[str], what: str, start_anew: str) -> list[int]:
  """The images among `indices` that an earlier call has read, by its names of them.

  Args:
    source: of the images.
    indices: those that the earlier call went through.
    names: of those that it read, in their order.
    left_out: names of those that were damaged.
    what: the source as the user named it.
    start_anew: what to do where they differ, for the error.

  Raises:
    ValueError: the source has another image in one of these places.
  """
  if getattr(source, "fixed", False) and len(names) == len(indices):
    return list(indices)
  left_out, read = set(left_out), []
  for index in indices:
    name = source.name(index)
    if len(read) < len(names) and name == names[len(read)]:
      read.append(index)
    elif name not in left_out:
      was = names[len(read)] if len(read) < len(names) else "none"
      raise ValueError(f"{printable(what)} has other images than before ({name} where {was} was): "
                       f"{start_anew}")
  if len(read) < len(names):
    raise ValueError(f"{printable(what)} has other images than before ({names[len(read)]} is not "
                     f"where it was): {start_anew}")
  return read


def check_marks(source: Source, indices: Sequence[int], known: str | None, what: str,
                start_anew: str) -> list[Mark]:
  """The marks of images that an earlier call has read, which are still the same.

  Args:
    source, what, start_anew: as for `check_names`.
    indices: of the images.
    known: the `digest` of their marks then; None where it was not kept.

  Raises:
    ValueError: they have changed.
  """
  found = marks(source, indices)
  if known is not None and digest(found) != known:
    raise ValueError(f"{printable(what)} has images that have changed since they were read, among "
                     f"{source.name(indices[0])} to {source.name(indices[-1])}: {start_anew}")
  return found
