"""The loop in which probes are trained: its state is kept on disk, and it goes on from there."""

import logging
import os
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

log = logging.getLogger(__name__)

SECONDS = 60.0  # between two times that the state is kept, at least
SHARE = 0.05  # of the time, at most, that goes into keeping it


class Kept:
  """The state of a training in a file, which outlives a kill.

  Attributes:
    step: how many steps are done.
    losses: of these, [n, G] each.
  """

  def __init__(self, path: str | os.PathLike, seconds: float = SECONDS):
    """Reads what is there. A file that is damaged is told of, and the training begins anew.

    Args:
      path: of the file (.npz); it need not be there.
      seconds: how long a state is not kept after the last one.
    """
    self._path, self._pause = pathlib.Path(path), seconds
    self.step, self._leaves, self.losses = 0, [], []
    if self._path.exists():
      try:
        with np.load(self._path) as file:
          self._leaves = [file[f"leaf_{i}"] for i in range(len(file.files) - 2)]
          self.losses, self.step = [file["losses"]], int(file["step"])
      except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s): the training begins anew", self._path, error)
    self._last, self._next = self.step, time.monotonic() + seconds

  def restore(self, state: Any) -> Any:
    """The kept state, on the devices of `state`, of which it has the structure; else `state`."""
    if not self.step:
      return state
    leaves, structure = jax.tree.flatten(state)
    placed = [jax.device_put(own, x.sharding) for own, x in zip(self._leaves, leaves, strict=True)]
    self._leaves = []
    return jax.tree.unflatten(structure, placed)

  def keep(self, step: int, state: Any, losses: list, now: bool = False):
    """Keeps the state after `step` steps, if that has not been done for long, or `now`."""
    if step == self._last or (time.monotonic() < self._next and not now):
      return
    start = time.monotonic()
    self._path.parent.mkdir(parents=True, exist_ok=True)
    whole = self._path.with_suffix(".new")
    leaves = {f"leaf_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
    try:
      with open(whole, "wb") as file:
        np.savez(file, step=step, losses=_joined(losses), **leaves)
      whole.replace(self._path)
    except OSError as error:  # a full disk is no reason to lose what is in memory
      log.warning("the training of probes cannot be kept: %s", error)
    end = time.monotonic()
    self._last, self._next = step, end + max(self._pause, (end - start) / SHARE)


def run(batches: Iterable, steps: int, begin: Callable[[Any], Any],
        step: Callable[[int, Any, Any], tuple[Any, jax.Array]], kept: Kept | None = None
        ) -> tuple[Any, np.ndarray]:
  """Trains, from where `kept` stands. The results are the same to the last bit as without a stop.

  Args:
    batches: what each step takes, from the step `kept.step` on. Where all steps are done, one more
      is asked for.
    steps: how many there are, those that are done included.
    begin: maps the first batch to the first state, a pytree of arrays.
    step: maps the number of a step, the state and a batch to the next state and to losses [n, G].
    kept: where the state is kept: now and then, at the end, and when a batch raises, as it does
      when the work is to stop. None: nowhere.

  Returns:
    The last state, and all losses [N, G].

  Raises:
    ValueError: fewer batches than steps.
  """
  done = kept.step if kept else 0
  losses = list(kept.losses) if kept else []
  state, batches = None, iter(batches)
  for i in range(min(done, steps - 1), steps):
    try:
      batch = next(batches, None)
    except BaseException:
      if kept and state is not None:
        kept.keep(i, state, losses, now=True)
      raise
    if batch is None:
      raise ValueError(f"there are {i} batches for {steps} steps")
    if state is None:
      state = begin(batch)
      state = kept.restore(state) if kept else state
    if i >= done:
      state, loss = step(i, state, batch)
      losses.append(loss)
      if kept:
        kept.keep(i + 1, state, losses, now=i + 1 == steps)
  return state, _joined(losses)


def _joined(losses: list) -> np.ndarray:
  return np.concatenate([np.asarray(x) for x in losses])


def drawn(count: int, batch: int, step: int, seed: int = 0
          ) -> tuple[np.ndarray, np.random.Generator]:
  """The items of a step, and the randomness for what is done with them.

  Every item comes once an epoch, in a new order each; what is left over after whole batches waits
  for another epoch. A step's are the same whichever steps were made before.

  Args:
    count: of all items.
    batch: items of a step, at most `count`.
    step: its number, from 0.
    seed: other seeds give other orders.
  """
  epoch, place = divmod(step, count // batch)
  order = np.random.default_rng([seed, 0, epoch]).permutation(count)
  return order[place * batch:(place + 1) * batch], np.random.default_rng([seed, 1, step])
