"""What happens beside the step: progress, and metrics on disk (`evaluation` has one more hook).

A hook is called as `hook(step, state, metrics)` after every step, `step` counting those done. For a
hook that records, `metrics` holds the means since the last log line on steps that log and is empty
on the others, and what an evaluation found comes with a second call for the step; it gets no state.
A hook that observes adds to `metrics` what it finds.
"""

import json
import logging
import os
import sys
import time
from datetime import timedelta
from typing import Protocol

import jax
import numpy as np
from etils import epath
from PIL import Image

from dinov3_jax.costs.flops import StepFlops
from dinov3_jax.train.state import TrainState

log = logging.getLogger(__name__)

# Known before the step runs: the last value says more than a mean.
SCHEDULED = ("lr", "last_layer_lr", "weight_decay", "teacher_momentum", "teacher_temp",
             "gram_weight", "backbone_ramp")


class Hook(Protocol):
  """Anything that watches training."""

  def __call__(self, step: int, state: TrainState | None, metrics: dict[str, float]) -> None: ...

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


def read_lines(path: epath.PathLike, start: int) -> list[dict[str, float]]:
  """What a run has written to its metrics up to step `start`; a line that is no longer readable,
  after a power cut or a full disk, is left out."""
  return [json.loads(line) for line in _kept(epath.Path(path), start)[0]]


def _kept(path: epath.Path, start: int) -> tuple[list[bytes], int]:
  """The lines up to step `start`, and how many cannot be read."""
  try:
    lines = path.read_bytes().splitlines(keepends=True)
  except OSError:
    return [], 0
  kept, damaged = [], 0
  for line in lines:
    try:
      step = json.loads(line)["step"]
      if line.endswith(b"\n") and step <= start:
        kept.append(line.rstrip() + b"\n")  # without what an editor may have put before its end
    except (ValueError, TypeError, KeyError):
      damaged += 1
  return kept, damaged


class JsonLines:
  """Appends metrics to a file, one JSON object a line and one line a step.

  A second call for a step adds to its line. What an earlier process wrote beyond step `start`,
  which is done again, is dropped with the first call, and so is what cannot be read.
  """

  def __init__(self, path: epath.PathLike, start: int):
    self._path, self._start, self._file = epath.Path(path), start, None

  def __call__(self, step: int, state: TrainState | None, metrics: dict[str, float]):
    if not metrics:
      return
    if self._file is None:
      self._open()
    text = json.dumps({name: float(f"{value:.7g}") for name, value in metrics.items()})
    if step == self._last:
      # In the place of the brace that ends the line: one write, so that a kill cannot part them.
      offset, text = self._end - 2, f", {text[1:]}\n"
    else:
      offset, text = self._end, f'{{"step": {step}, {text[1:]}\n'
    data = text.encode()
    if os.pwrite(self._file, data, offset) != len(data):
      # As it was, or the next line would be joined to a half one, and both lost.
      os.ftruncate(self._file, self._end)
      if offset < self._end:
        os.pwrite(self._file, b"}\n", offset)
      raise OSError(f"{self._path} took only a part of a line")
    self._last, self._end = step, offset + len(data)

  def _open(self):
    kept, damaged = _kept(self._path, self._start)
    if damaged:
      log.warning("%s: %d lines cannot be read and are dropped", self._path, damaged)
    whole = b"".join(kept)
    if not self._path.exists() or self._path.read_bytes() != whole:
      new = self._path.with_name(self._path.name + ".new")
      new.write_bytes(whole)
      new.replace(self._path)
    self._file = os.open(self._path, os.O_RDWR)
    self._end, self._last = len(whole), json.loads(kept[-1])["step"] if kept else None

  def flush(self):
    if self._file is not None:
      os.fsync(self._file)

  def close(self):
    if self._file is not None:
      os.close(self._file)


class TensorBoard:
  """Writes metrics as TensorBoard scalars, the pictures of evaluations, and the settings.

  An evaluation draws its picture after the first call for its step, so it is looked for at the next
  call with metrics: for the same step, or, where the evaluation found no numbers, a later one.
  """

  def __init__(self, folder: epath.PathLike, start: int, pictures: epath.PathLike | None = None,
               settings: str = ""):
    """Args:
      folder: to write to.
      start: steps done before; what an earlier process wrote beyond is hidden.
      pictures: a folder; its `step_*.png` of the steps that this is called for are shown.
      settings: a text to show.
    """
    self._folder, self._start, self._writer, self._files = epath.Path(folder), start, None, 0
    self._pictures = pictures and epath.Path(pictures)
    self._settings = settings
    self._step, self._passed = start, []  # steps whose pictures were not looked for yet

  def __call__(self, step: int, state: TrainState | None, metrics: dict[str, float]):
    if step == self._start and metrics:  # the one before a restart, which is evaluated only now
      self._passed.append(step)
    passed = self._passed
    if metrics:
      self._passed = []
    if step != self._step:
      self._step = step
      self._passed = [*self._passed, step]
    if metrics:
      self._write(step, metrics, passed)

  def _write(self, step: int, metrics: dict[str, float], passed: list[int]):
    from tensorboardX import summary  # imports torch where there is one: seconds
    if self._writer is None:
      self._open(step, summary)
    for name, value in metrics.items():
      self._add(step, summary.scalar(name, value))
    self._show(passed, summary)

  def _open(self, step: int, summary):
    # Not its SummaryWriter: it hands events to a thread, for which its `flush` does not wait, and
    # which dies of a full disk and leaves this one waiting for ever.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import SessionLog
    self._folder.mkdir(parents=True, exist_ok=True)
    self._writer = EventsWriter(str(self._folder / "events"), f".{os.getpid()}.{self._files}")
    if self._start and not self._files:
      self._put(step=self._start + 1, session_log=SessionLog(status=SessionLog.START))
    self._files += 1
    if self._settings:
      code = "".join(f"\n    {line}" for line in self._settings.splitlines())
      self._add(step, summary.text("settings", code))

  def _add(self, step: int, content):
    self._put(step=step, summary=content)

  def _put(self, **content):
    from tensorboardX.proto.event_pb2 import Event
    try:
      self._writer.write_event(Event(wall_time=time.time(), **content))
    except OSError:
      self._writer = None  # a file that ends amid a record is read up to there: begin another
      raise

  def _show(self, steps: list[int], summary):
    if not self._pictures or not self._pictures.is_dir():
      return
    there = {path.name for path in self._pictures.iterdir()}
    for step in steps:
      if picture_name(step) in there:
        with Image.open(self._pictures / picture_name(step)) as picture:
          pixels = np.asarray(picture)
        self._add(step, summary.image("patches", pixels, dataformats="HWC"))

  def flush(self):
    if self._writer is not None:
      self._writer.flush()

  def close(self):
    if self._writer is not None:
      from tensorboardX import summary
      try:
        self._show(self._passed, summary)
      finally:
        if self._writer is not None:
          self._writer.close()


def picture_name(step: int) -> str:
  """The file, in a run's `pictures`, that the evaluation after `step` draws."""
  return f"step_{step:07d}.png"


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
    if text := self.describe(step, metrics):
      log.info("step %d/%d  %s", step, self._steps, text)

  def describe(self, step: int, metrics: dict[str, float]) -> str:
    """The metrics that are worth a glance; empty if there are none."""
    parts = [f"loss {metrics['loss']:.4f}"] if "loss" in metrics else []
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
    parts += [f"{name} {value:.4f}" for name, value in metrics.items() if is_accuracy(name)]
    return "  ".join(parts)

  def close(self):
    pass


def is_accuracy(name: str) -> bool:
  """Whether a metric is what an evaluation found, of whichever source, and worth a glance."""
  return name.rpartition("/")[2].startswith("knn")


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
    if any(map(is_accuracy, metrics)):  # rare, and worth a line that stays
      self._progress.console.print(f"step {step}  {self.describe(step, metrics)}", highlight=False)
    else:
      self._text = self.describe(step, metrics) or self._text
    self._progress.update(self._task, completed=step, text=self._text)

  def close(self):
    self._progress.stop()


def progress(steps: int, images: int, start: int, workdir: epath.PathLike) -> Hook:
  """A figure in a notebook, a bar where there is a terminal to draw it on, else plain lines."""
  from dinov3_jax.train import notebook  # which has hooks of this module
  if notebook.is_here():
    return notebook.LiveFigure(steps, images, start, workdir)
  return ProgressBar(steps, images, start) if sys.stdout.isatty() else LogLine(steps, images)
