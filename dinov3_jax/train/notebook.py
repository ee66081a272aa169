"""A run that is watched in a notebook: its curve and its newest picture, redrawn as they come."""

import importlib.util
import io
import sys
import time

from etils import epath
from PIL import Image

from dinov3_jax.train.hooks import LogLine, picture_name, read_lines

EVERY = 2.0  # seconds between two drawings; the last one is always made


def is_here() -> bool:
  """Whether this process is the kernel of a notebook, and can draw."""
  shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
  return hasattr(shell, "kernel") and importlib.util.find_spec("matplotlib") is not None


class LiveFigure(LogLine):
  """Shows the loss and the k-NN accuracy of every step that logs, and the last evaluation's
  picture.

  It begins with what the run has written down before, and takes the place of one output in the
  cell that trains.
  """

  def __init__(self, steps: int, images: int, start: int, workdir: epath.PathLike, show=None):
    """Args:
      steps, images: as of `LogLine`.
      start: steps done before.
      workdir: the run's folder.
      show: what is called with each PNG; None: the notebook's output.
    """
    super().__init__(steps, images)
    self._workdir = epath.Path(workdir)
    self._rows = {row["step"]: row for row in read_lines(self._workdir / "metrics.jsonl", start)}
    evaluated = [step for step, row in self._rows.items() if "knn_top1" in row]
    self._pictures = list(dict.fromkeys([*evaluated, start]))
    self._show = show or _output()
    self._text, self._drawn, self._stale = "compiling", 0.0, False
    self._draw()

  def __call__(self, step: int, state, metrics: dict[str, float]):
    if not self._pictures or self._pictures[-1] != step:
      self._pictures.append(step)
    if not metrics:
      return
    self._rows[step] = self._rows.get(step, {}) | metrics
    self._text, self._stale = self.describe(step, self._rows[step]) or self._text, True
    if time.perf_counter() - self._drawn >= EVERY:
      self._draw()

  def close(self):
    if self._stale:
      self._draw()

  def _draw(self):
    self._show(self.png())
    self._drawn, self._stale = time.perf_counter(), False

  def png(self) -> bytes:
    """The figure as it stands."""
    # Not pyplot: its figures are those of the user, and drawn once more at the end of a cell.
    from matplotlib.figure import Figure
    picture = self._newest_picture()
    figure = Figure(figsize=(11, 3.6) if picture else (6, 3.6), dpi=100, layout="constrained")
    last = max(self._rows, default=0)
    figure.suptitle(f"step {last:,} of {self._steps:,}\n{self._text}", fontsize=9)
    axes = figure.subplots(1, 2, width_ratios=[2, 3]) if picture else [figure.subplots()]
    _curves(axes[0], self._rows, self._steps)
    if picture:
      step, pixels = picture
      axes[1].imshow(pixels)
      axes[1].set_title(f"held-out images and their patches, step {step:,}", fontsize=9)
      axes[1].axis("off")
    out = io.BytesIO()
    figure.savefig(out, facecolor="white")  # readable on a dark page, too
    return out.getvalue()

  def _newest_picture(self) -> tuple[int, Image.Image] | None:
    for step in reversed(self._pictures):
      path = self._workdir / "pictures" / picture_name(step)
      if path.exists():
        with path.open("rb") as file, Image.open(file) as picture:
          self._pictures = self._pictures[self._pictures.index(step):]
          return step, picture.convert("RGB")
    return None


def _curves(axes, rows: dict[int, dict[str, float]], steps: int):
  """The loss on the left axis and, where there are some, accuracies on the right."""
  for name, colour, side in (("loss", "tab:blue", axes), ("knn_top1", "tab:orange", None)):
    at = sorted(step for step, row in rows.items() if name in row)
    if side is None:
      if not at:
        break
      side = axes.twinx()
    values = [rows[step][name] for step in at]
    side.plot(at, values, color=colour, marker="o" if len(at) < 20 else None, markersize=3,
              clip_on=False)
    side.set_ylabel(name, color=colour)
  axes.set_xlim(0, steps)
  axes.set_xlabel("step")


def _output():
  """What shows a PNG, in the place of the one before."""
  from IPython.display import Image as Shown
  from IPython.display import display
  handle = None

  def show(png: bytes):
    nonlocal handle
    if handle is None:
      handle = display(Shown(png), display_id=True)
    else:
      handle.update(Shown(png))

  return show
