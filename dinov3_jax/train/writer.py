"""Writes checkpoints beside training; a failure to write is told, and loses no older one."""

import contextlib
import json
import logging
import shutil
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from dinov3_jax.train.durable import DurablePath
from dinov3_jax.train.state import TrainState
from dinov3_jax.weights import checksums
from dinov3_jax.weights.native import CHECKSUMS, FOLDER

log = logging.getLogger(__name__)


class Pinned(policies.PreservationPolicy):
  """Keeps the one checkpoint that a `Writer` has pinned, if any."""

  def __init__(self, writer: "Writer"):
    self._writer = writer

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Of each checkpoint, whether it must stay."""
    return [info.step == self._writer.pinned for info in checkpoints]


class Writer:
  """Saves a run's checkpoints; writing goes on while training continues.

  A checkpoint appears under its own name only when it is complete and on disk, so a killed process
  or a power cut leaves the former ones as they were. The last `keep` stay, and every one whose step
  is a multiple of `keep_every` (0: none beyond the last).

  Attributes:
    pinned: None, or the step of a checkpoint that stays in any case.
    failed: None, or the error because of which the last checkpoint could not be written.
  """

  def __init__(self, workdir: epath.PathLike, keep: int, keep_every: int, *, verify: bool = True,
               stop_on_error: bool = False):
    """Clears what a killed process left unfinished.

    Args:
      workdir: of the run.
      keep, keep_every: see the class.
      verify: write a checksum of every array, which is verified when it is read.
      stop_on_error: raise an OSError where a checkpoint cannot be written; else it is logged, and
        the next `save` tries again.
    """
    self._folder = epath.Path(workdir).resolve() / FOLDER
    self.pinned: int | None = None
    kept = [policies.LatestN(keep), Pinned(self)]
    if keep_every:
      kept.append(policies.EveryNSteps(keep_every))
    on_disk = "://" not in str(self._folder)  # buckets have no renaming, and Orbax a way of its own
    self._options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True,
      temporary_path_class=DurablePath if on_disk else None)
    self._verify, self._stop_on_error = verify, stop_on_error
    self._manager = ocp.CheckpointManager(self._folder, options=self._options)
    self._saving: tuple[int, int] | None = None  # the step that is being written, and its bytes
    self._clock = time.monotonic()
    self.failed: OSError | None = None

  @property
  def seconds(self) -> float:
    """Since the last `save`, or since the start."""
    return time.monotonic() - self._clock

  def steps(self) -> list[int]:
    """Of the checkpoints that are there or on their way, in order."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: TrainState, position: Any, config: ConfigDict) -> bool:
    """Copies `state` off the devices and writes it in the background; a step saved before is left.

    With several processes, all must call it.

    Args:
      step: steps done.
      state: after them.
      position: of the data stream after `step` batches, anything that JSON can hold.
      config: the run's settings.

    Returns:
      Whether it is there or on its way. A state whose arrays are not finite is not saved.

    Raises:
      OSError: with `stop_on_error`, an earlier one could not be written.
    """
    self.wait()
    self._clock = time.monotonic()
    if step in self.steps():
      return True
    settings = json.loads(config.to_json())
    items = dict(state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(position),
                 config=ocp.args.JsonSave(settings))
    if self._verify:
      sums, infinite = checksums.of_arrays(state)
      if infinite:
        log.error("the state after step %d is not saved: %d of its arrays are not finite, such as "
                  "%s", step, len(infinite), infinite[0])
        return False
      items[CHECKSUMS] = ocp.args.JsonSave(dict(
        arrays=sums, config=checksums.of_json(settings), data=checksums.of_json(position)))
    self._saving = step, sum(x.nbytes for x in jax.tree.leaves(state))
    try:
      self._manager.save(step, args=ocp.args.Composite(**items))
    except Exception as error:  # a disk fails in as many ways as libraries write to it
      self._give_up(error)
      return False
    return True

  def poll(self):
    """Says so if the last checkpoint has failed meanwhile; does not wait."""
    if self._saving and not self._manager.is_saving_in_progress():
      self.wait()

  def wait(self):
    """Waits until the last checkpoint is on disk, or has failed.

    Raises:
      OSError: with `stop_on_error`, it could not be written.
    """
    if self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      self._give_up(error)
    else:
      self._saving, self.failed = None, None

  def _give_up(self, error: Exception):
    """Clears what was written of the checkpoint, for its room, and says why."""
    (step, size), self._saving = self._saving, None
    self._close_manager()
    room = ""
    with contextlib.suppress(OSError):
      if jax.process_index() == 0:
        for unfinished in self._folder.glob(f"{step}.orbax-checkpoint-tmp*"):
          unfinished.rmtree()
      room = f", {shutil.disk_usage(self._folder).free / 2**20:,.0f} MiB are free"
    self._manager = ocp.CheckpointManager(self._folder, options=self._options)
    self.failed = OSError(
      f"the checkpoint of step {step} cannot be written to {self._folder}: it takes "
      f"{size / 2**20:,.0f} MiB{room} ({reason(error)}); the checkpoints before it are whole")
    if self._stop_on_error:
      raise self.failed from error
    log.error("%s, and the next one tries again", self.failed)

  def _close_manager(self):
    with contextlib.suppress(Exception):  # it reports the same error again
      self._manager.close()

  def close(self):
    """Waits until everything is on disk.

    Raises:
      OSError: with `stop_on_error`, the last checkpoint could not be written.
    """
    try:
      self.wait()
    finally:
      self._close_manager()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def reason(error: BaseException) -> str:
  """What is wrong with a disk, of all that libraries say about it, on one line."""
  while error is not None:
    if isinstance(error, OSError) and error.strerror:
      return error.strerror
    text = " ".join(str(error).split())
    known = [said for said in ("No space left on device", "Disk quota exceeded",
                               "Read-only file system", "Input/output error", "Permission denied",
                               "File too large")
             if said.lower() in text.lower()]
    if known:
      return known[0]
    last, error = error, error.__cause__ or error.__context__
  return f"{type(last).__name__}: {' '.join(str(last).split())[:200]}"
