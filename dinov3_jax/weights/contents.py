"""What a file holds, whatever its name says; and JSON documents that others wrote."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

AGAIN = "download it again"
_HTML = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")
_LFS = b"version https://git-lfs.github.com/spec/"


def reject_impostors(path: os.PathLike):
  """Raises a ValueError for what often lies under the name of a file of weights or settings.

  These are an empty file, a saved web page, a pointer of Git LFS and a compressed file. Nothing
  else is judged here.
  """
  path = epath.Path(path)
  with path.open("rb") as file:
    head = file.read(512)
  start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
  if not head:
    raise ValueError(f"{path} is empty: {AGAIN}")
  if start.startswith(_HTML):
    raise ValueError(f"{path} is a web page, not what its name says: {AGAIN}, signed in if the "
                     "page asks for it")
  if start.startswith(_LFS):
    raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its "
                     "repository")
  for magic, kind in {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd",
                      b"BZh": "bzip2", b"7z\xbc\xaf\x27\x1c": "7z"}.items():
    if head.startswith(magic):
      raise ValueError(f"{path} is a {kind} archive: unpack it first")


def read_json(path: os.PathLike) -> dict[str, Any]:
  """The object that a JSON file holds.

  Raises:
    ValueError: it holds something else, or is no JSON.
    OSError: it cannot be read.
  """
  reject_impostors(path)
  path = epath.Path(path)
  try:
    content = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:  # broken UTF-8 is a ValueError, too
    reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
    raise ValueError(f"{path} is no valid JSON ({reason}): {AGAIN}") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} holds no JSON object, but {_kind(content)}: {AGAIN}")
  return content


def _kind(value: Any) -> str:
  return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a single value")


def is_count(value: Any, least: int = 1) -> bool:
  """Whether a value of a document is a whole number of at least `least` and below 2**31."""
  return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def is_number(value: Any) -> bool:
  """Whether a value of a document is a number, and below 1e30, so that products are finite."""
  return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def require(document: Mapping[str, Any], key: str, default: Any, valid: Callable[[Any], bool],
            what: str) -> Any:
  """`document[key]`, or `default` where it is absent.

  Args:
    valid: says of a value whether it is fit.
    what: describes a fit value, for the message.

  Raises:
    ValueError: the value is not fit.
  """
  value = document.get(key, default)
  if not valid(value):
    raise ValueError(f"{key} must be {what}, not {value!r:.60}")
  return value
