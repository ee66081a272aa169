"""What happens beside the step: progress, and metrics on disk (`evaluation` has one more hook).

A hook is called as `hook(step, state, metrics)` after every step, `step` counting those done.
`metrics` holds the means since the last log line on steps that log, and is empty on the others;
what a hook adds to it, the hooks after it write down.
"""

import json
import logging
import math
import sys
import time
from datetime import timedelta
from typing import Protocol

import jax
import numpy as np
from etils import epath

from dinov3_jax.train.flops import StepFlops
from dinov3_jax.train.state import TrainState

log = logging.getLogger(__name__)

# Known before the step runs: the last value says more than a mean.
SCHEDULED = ("lr", "last_layer_lr", "weight_decay", "teacher_momentum", "teacher_temp",
             "gram_weight")


class Hook(Protocol):
  """Anything that watches training."""

  def __call__(self, step: int, state: TrainState, metrics: dict[str, float]) -> None: ...

  def close(self) -> None: ...


class Interval:
  """What happened since the last log line; collecting it never waits for the devices."""

  def __init__(self, images: int, chips: float = 1, peak: float | None = None):
    """Args:
      images: how many a step takes, over all devices.
      chips: how many there are.
      peak: operations a second that a chip can do, None if that is not known.
    """
    self._images, self._chips, self._peak = images, chips, peak
    self._clear()

  def _clear(self):
    self._steps: list[dict[str, jax.Array]] = []
    self.restart_clock()

  def restart_clock(self):
    """Leaves the time until now out of account, such as that of compiling."""
    self._start, self._timed, self._waited = time.perf_counter(), 0, 0.0
    self._flops = {}

  def add(self, metrics: dict[str, jax.Array], waited: float, flops: StepFlops | None = None):
    """Takes the metrics of a step, the seconds spent waiting for its data, and its operations."""
    self._steps.append(metrics)
    self._timed += 1
    self._waited += waited
    for name, count in flops._asdict().items() if flops else ():
      self._flops[name] = self._flops.get(name, 0) + count

  def exclude(self, seconds: float):
    """Leaves time that was no training, such as that of an evaluation, out of account."""
    self._start += seconds

  def means(self) -> dict[str, float]:
    """Waits for the steps taken, averages those that were not skipped, and begins anew.

    Adds `skipped` (how many), `images_per_second`, the same `_per_chip`, and `data_wait`, a share
    of the time. Where the operations of the steps were given, `tflops_per_chip_full` (a second, as
    if stochastic depth skipped nothing), `tflops_per_chip_executed`, and both as shares of the
    chip's peak, `mfu_full` and `mfu_executed`.
    """
    steps = jax.device_get(self._steps)
    seconds = time.perf_counter() - self._start
    taken = [step for step in steps if not step["skipped"]]
    values = {name: float(np.mean([step[name] for step in taken])) for name in steps[-1] if taken}
    values |= {name: float(steps[-1][name]) for name in SCHEDULED if name in steps[-1]}
    values["skipped"] = len(steps) - len(taken)
    if self._timed:
      speed = self._timed * self._images / seconds
      values |= {"images_per_second": speed, "images_per_second_per_chip": speed / self._chips}
      for name, count in self._flops.items():
        flops = count / seconds / self._chips
        values[f"tflops_per_chip_{name}"] = flops / 1e12
        if self._peak:
          values[f"mfu_{name}"] = flops / self._peak
      values["data_wait"] = self._waited / seconds
    self._clear()
    return values


class JsonLines:
  """Appends metrics to a file, one JSON object a line, each step at most once."""

  def __init__(self, path: epath.PathLike, start: int):
    """Drops what an earlier process wrote beyond step `start`, which is about to be done again."""
    path = epath.Path(path)
    if path.exists():
      lines = path.read_text().splitlines(keepends=True)
      kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= start]
      if kept != lines:
        new = path.with_name(path.name + ".new")
        new.write_text("".join(kept))
        new.replace(path)
    self._file = path.open("a")

  def __call__(self, step: int, state: TrainState, metrics: dict[str, float]):
    if metrics:
      values = {name: float(f"{value:.7g}") for name, value in metrics.items()}
      self._file.write(json.dumps({"step": step, **values}) + "\n")
      self._file.flush()

  def close(self):
    self._file.close()


class TensorBoard:
  """Writes metrics as TensorBoard scalars."""

  def __init__(self, folder: epath.PathLike, start: int):
    self._folder, self._start, self._writer = folder, start, None

  def __call__(self, step: int, state: TrainState, metrics: dict[str, float]):
    if metrics and self._writer is None:
      from tensorboardX import SummaryWriter  # imports torch where there is one: seconds
      purge = self._start + 1 if self._start else None
      self._writer = SummaryWriter(str(self._folder), purge_step=purge)
    for name, value in metrics.items():
      self._writer.add_scalar(name, value, step)

  def close(self):
    if self._writer is not None:
      self._writer.close()


class Profile:
  """Traces a few steps, for TensorBoard's profiler or Perfetto."""

  def __init__(self, folder: epath.PathLike, first: int, count: int = 3):
    """`first` is the first step traced, at least the second one that is taken."""
    self._folder, self._first, self._count = folder, first, count
    self._tracing = False

  def __call__(self, step: int, state: TrainState, metrics: dict[str, float]):
    if step == self._first - 1:
      jax.block_until_ready(state.step)
      jax.profiler.start_trace(str(self._folder))
      self._tracing = True
    elif step == self._first + self._count - 1:
      jax.block_until_ready(state.step)
      self.close()

  def close(self):
    if self._tracing:
      jax.profiler.stop_trace()
      self._tracing = False
      log.info("a profile is in %s", self._folder)


class LogLine:
  """A plain line for every log interval."""

  def __init__(self, steps: int, images: int):
    """`steps` is the run's last step, `images` how many a step takes."""
    self._steps, self._images = steps, images

  def __call__(self, step: int, state: TrainState, metrics: dict[str, float]):
    if metrics:
      log.info("step %d/%d  %s", step, self._steps, self.describe(step, metrics))

  def describe(self, step: int, metrics: dict[str, float]) -> str:
    parts = [f"loss {metrics.get('loss', math.nan):.4f}"]
    if "images_per_second" in metrics:
      speed = metrics["images_per_second"]
      left = timedelta(seconds=round((self._steps - step) * self._images / speed))
      parts.append(f"{speed:.4g} images/s")
      if "mfu_full" in metrics:  # of a chip that is known
        parts.append(f"a chip {metrics['images_per_second_per_chip']:.4g} images/s, "
                     f"{metrics['tflops_per_chip_full']:.3g} TFLOP/s "
                     f"({metrics['tflops_per_chip_executed']:.3g} executed), "
                     f"MFU {metrics['mfu_full']:.1%} ({metrics['mfu_executed']:.1%})")
      parts += [f"waiting for data {metrics['data_wait']:.0%}", f"{left} left"]
    if metrics.get("skipped"):
      parts.append(f"{metrics['skipped']} skipped")
    parts += [f"{name} {value:.4f}" for name, value in metrics.items() if name.startswith("knn")]
    return "  ".join(parts)

  def close(self):
    pass


class ProgressBar(LogLine):
  """A bar with loss, images/s and the time left, for a terminal."""

  def __init__(self, steps: int, images: int, start: int, console=None):
    """`start` is how many steps are done; `console` one of rich's (None: stdout)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    super().__init__(steps, images)
    self._text = ""
    self._progress = Progress(BarColumn(bar_width=None), MofNCompleteColumn(),
                              TextColumn("{task.fields[text]}"), expand=True,
                              console=console)
    self._task = self._progress.add_task("", total=steps, completed=start, text="compiling")
    self._progress.start()
    self._progress.console.show_cursor(True)  # a killed process must not leave a terminal without

  def __call__(self, step: int, state: TrainState, metrics: dict[str, float]):
    if metrics:
      self._text = self.describe(step, metrics)
      if any(name.startswith("knn") for name in metrics):  # rare, and worth a line that stays
        self._progress.console.print(f"step {step}  {self._text}", highlight=False)
    self._progress.update(self._task, completed=step, text=self._text)

  def close(self):
    self._progress.stop()


def progress(steps: int, images: int, start: int) -> Hook:
  """A bar where there is a terminal to draw it on, plain lines elsewhere."""
  return ProgressBar(steps, images, start) if sys.stdout.isatty() else LogLine(steps, images)
