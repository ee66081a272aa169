"""Files here and in buckets, by path: found by pattern, told apart from older ones, opened.

`s3://`, `gs://`, `hf://` and whatever else fsspec knows are read through it; each needs its package
(s3fs, gcsfs, huggingface_hub). All other paths are files of this machine.
"""

import glob
import os
import re
from typing import BinaryIO

from dinov3_jax.data.walk import printable

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is a URL that fsspec reads."""
  return bool(SCHEME.match(os.fspath(path)))


def file_system(path: str):
  """The fsspec file system of a URL, and the path that it knows.

  Raises:
    ValueError: its package is missing, or the URL is none.
  """
  try:
    import fsspec
    return fsspec.core.url_to_fs(path)
  except ImportError as error:
    raise ValueError(f"{printable(path)} needs a package that is missing ({_line(error)}); pip "
                     "install 'dinov3_jax[remote]'") from error
  except Exception as error:
    raise ValueError(f"{printable(path)} cannot be opened: {_line(error)}") from error


def unreadable(path: str, error: Exception) -> ValueError:
  """One line on a place that cannot be read, with what to do where that is known."""
  reason = getattr(error, "strerror", None) or _line(error)
  text = f"{printable(path)} cannot be read: {reason}"
  if isinstance(error, PermissionError) or re.search(r"\b(401|403|denied|forbidden)\b", text, re.I):
    text += "; see that these credentials may list and read it" if is_remote(path) else ""
  return ValueError(text)


def expand(pattern: str) -> list[str]:
  """The files that a pattern means, sorted; `{000..012}` counts, `*` and `?` match.

  Raises:
    ValueError: none is there, one of a range is missing, or the place cannot be read.
  """
  pattern, paths = os.path.expanduser(pattern), []
  for path in _count(pattern):
    if not re.search(r"[*?\[]", path):
      if not is_remote(path) and not os.path.isfile(path):
        raise ValueError(f"there is no file {printable(path)}")
      paths.append(path)
    elif is_remote(path):
      fs, inner = file_system(path)
      try:
        paths += [fs.unstrip_protocol(found) for found in fs.glob(inner)]
      except Exception as error:
        raise unreadable(path, error) from error
    else:
      paths += [found for found in glob.glob(path, recursive=True) if os.path.isfile(found)]
  if not paths:
    raise ValueError(f"no file matches {printable(pattern)}")
  return sorted(dict.fromkeys(paths))


def _count(pattern: str) -> list[str]:
  found = RANGE.search(pattern)
  if not found:
    return [pattern]
  first, last = found.groups()
  return [path for number in range(int(first), int(last) + 1) for path in _count(
    f"{pattern[:found.start()]}{number:0{len(first)}}{pattern[found.end():]}")]


def files_in(folder: str) -> list[str]:
  """All files below a bucket's prefix, or those in a folder of this machine and in its `data/`.

  Raises:
    ValueError: the place cannot be read.
  """
  try:
    if is_remote(folder):
      fs, inner = file_system(folder)
      return sorted(fs.unstrip_protocol(path) for path in fs.find(inner))
    found = []
    for place in (folder, os.path.join(folder, "data")):
      if os.path.isdir(place):
        with os.scandir(place) as entries:
          found += [entry.path for entry in entries if entry.is_file()
                    and not entry.name.startswith(".")]
    return sorted(found)
  except ValueError:
    raise
  except Exception as error:
    raise unreadable(folder, error) from error


def mark(path: str) -> list:
  """What tells whether a file has changed: its bytes, and its time or tag; ready for JSON.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    if not is_remote(path):
      stat = os.stat(path)
      return [stat.st_size, stat.st_mtime_ns]
    fs, inner = file_system(path)
    info = fs.info(inner)
  except ValueError:
    raise
  except Exception as error:
    raise unreadable(path, error) from error
  tags = (info.get(key) for key in ("ETag", "etag", "blob_id", "mtime", "LastModified", "created"))
  return [info["size"], next((str(tag) for tag in tags if tag), "")]


def open_file(path: str) -> BinaryIO:
  """A file to read at any place.

  Raises:
    ValueError: it cannot be opened.
  """
  try:
    if not is_remote(path):
      return open(path, "rb")
    fs, inner = file_system(path)
    return fs.open(inner, "rb")
  except ValueError:
    raise
  except Exception as error:
    raise unreadable(path, error) from error


def absolute(path: str) -> str:
  """A path that means the same from any working directory."""
  return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def _line(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0]
