"""The checkpoint that an evaluation likes most: found, kept, and named in `checkpoints/best`."""

import json
import logging
import math
from collections.abc import Collection, Iterable, Mapping

import jax
from etils import epath

from dinov3_jax.data.durable import write_text
from dinov3_jax.train.hooks import is_accuracy
from dinov3_jax.train.writer import Writer
from dinov3_jax.weights import native
from dinov3_jax.weights.places import BEST, FOLDER

log = logging.getLogger(__name__)


class Best:
  """Follows one metric, of which more is better, over a run's evaluations.

  Every evaluated step is saved before it is looked at. The one with the highest value, of equals
  the first, is kept beside the newest ones, and the small file `checkpoints/best` names it, which
  `dinov3_jax.load` takes in the place of a checkpoint. After a restart all of it follows from the
  metrics that the run has written down.
  """

  def __init__(self, metric: str, workdir: epath.PathLike, writer: Writer,
               past: Iterable[Mapping[str, float]] = ()):
    """Args:
      metric: its name; "" follows none.
      workdir: of the run.
      writer: of its checkpoints.
      past: metrics from before a restart.
    """
    self._metric, self._writer = metric, writer
    self._path = epath.Path(workdir) / FOLDER / BEST
    self._step, self._value, self._missing_is_told = None, -math.inf, False
    there = writer.steps()
    for line in past:
      if metric in line and line["step"] in there and line[metric] > self._value:
        self._step, self._value = int(line["step"]), line[metric]
    if self._step is not None:
      writer.pinned = self._step
      self._name_it()  # a kill may have come between the metric and this file
    else:  # none is followed, or a new one: what was the best before stays until there is another
      writer.pinned = self._named(there)

  def __call__(self, step: int, found: Mapping[str, float]):
    """Takes what evaluations found after a step, if anything.

    Raises:
      OSError: with `checkpoint.on_error=stop`, the checkpoint could not be written.
    """
    if not self._metric or not found:
      return
    if self._metric not in found:
      if any(map(is_accuracy, found)):  # not the health figures alone
        self._tell_missing(found)
      return
    if not found[self._metric] > self._value:
      return
    self._writer.wait()  # only what is on disk may be named
    if step not in self._writer.steps():
      return
    self._step, self._value = step, found[self._metric]
    self._writer.pinned = step
    self._name_it()

  def _named(self, there: Collection[int]) -> int | None:
    """The step that the file names, if its checkpoint is there."""
    try:
      step = int(native.named_by(self._path).name)
    except FileNotFoundError:
      return None
    return step if step in there else None

  def _tell_missing(self, found: Mapping[str, float]):
    if not self._missing_is_told:
      self._missing_is_told = True
      log.warning("evals.best=%s is no metric of this run's evaluations, which have %s: no "
                  "checkpoint is the best one", self._metric, ", ".join(sorted(found)))

  def _name_it(self):
    if jax.process_index() != 0:
      return
    content = {"step": self._step, "metric": self._metric, "value": self._value}
    try:
      write_text(self._path, json.dumps(content) + "\n")
    except OSError as error:  # the metrics say the same
      log.warning("%s cannot be written: %s", self._path, error.strerror or error)
