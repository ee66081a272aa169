"""Results of long work, item by item, that outlive a kill."""

import json
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class Ledger:
  """A file of lines, one a finished item: its key and its result as JSON.

  A line that a kill cut short, or that is damaged, does not count; its item is done again.
  """

  def __init__(self, path: str | os.PathLike):
    self._path = pathlib.Path(path)
    self._results = {}
    self._whole = True  # whether the file ends with the end of a line
    if self._path.exists():
      text = self._path.read_text(errors="replace")
      self._whole = not text or text.endswith("\n")
      for line in text.splitlines():
        try:
          key, result = json.loads(line)
          self._results[key] = result
        except (ValueError, TypeError):
          log.warning("%s has a damaged line, whose item is done again", self._path)

  def __len__(self) -> int:
    return len(self._results)

  def get(self, key: str, compute: Callable[[], Any]) -> Any:
    """The result of an item: the stored one, or that of `compute`, which is stored.

    It is always what JSON makes of it, so that both are alike.
    """
    if key not in self._results:
      line = json.dumps([key, compute()])
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with open(self._path, "a") as file:
        file.write(("" if self._whole else "\n") + line + "\n")
      self._whole = True
      self._results[key] = json.loads(line)[1]
    return self._results[key]
