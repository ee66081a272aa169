"""How far a step is: a bar with the time left, where there is someone to see it."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

import jax
from rich.console import Console
from rich.progress import (
  BarColumn,
  Progress,
  TaskProgressColumn,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)


class Report(Protocol):
  """Called with the share of the work that is done, from 0 to 1, and what is being done."""

  def __call__(self, share: float, text: str) -> None: ...


def silent(share: float, text: str) -> None:
  """Nobody looks."""


@contextlib.contextmanager
def bar(show: bool = True) -> Iterator[Report]:
  """A bar on the standard error stream, in the first process."""
  columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
             TextColumn("{task.description}"))
  with Progress(*columns, console=Console(stderr=True),
                disable=not show or jax.process_index() > 0) as progress:
    task = progress.add_task("", total=1.0)
    yield lambda share, text: progress.update(task, completed=share, description=text)
    progress.update(task, completed=1.0, description="")


def part(report: Report, begin: float, end: float) -> Report:
  """A report whose 0 to 1 is from `begin` to `end` of another's."""
  return lambda share, text: report(begin + (end - begin) * share, text)
