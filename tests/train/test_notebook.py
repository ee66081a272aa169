import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.train import hooks, notebook


@pytest.fixture
def shown(monkeypatch):
  """The pictures that a notebook would show."""
  monkeypatch.setattr(notebook, "EVERY", 0)
  return []


def figure(workdir, shown, start=0):
  return notebook.LiveFigure(
    100, 8, start, workdir, lambda png: shown.append(np.asarray(Image.open(io.BytesIO(png)))))


def test_the_curve_grows(tmp_path, shown):
  live = figure(tmp_path, shown)
  for step in range(1, 31):
    live(step, None, {"loss": 1 / step} if step % 10 == 0 else {})
  assert len(shown) == 4  # the empty one, and one for each step that logs
  blue = [int(((x[..., 2] > 150) & (x[..., 0] < 60)).sum()) for x in shown]
  assert blue[1] < blue[2] < blue[3]
  assert len({x.shape for x in shown}) == 1
  live(30, None, {"knn_top1": 0.5, "knn_top5": 0.9})
  orange = lambda x: int(((x[..., 0] > 230) & (x[..., 2] < 60)).sum())
  assert orange(shown[-1]) > orange(shown[-2]) == 0
  live.close()
  assert len(shown) == 5  # nothing has changed since


def test_the_newest_picture_and_what_was_before(tmp_path, shown):
  (tmp_path / "pictures").mkdir()
  rows = [{"step": 10, "loss": 2.0, "knn_top1": 0.4}, {"step": 20, "loss": 1.0}]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  for step, colour in ((10, "red"), (30, "lime")):
    Image.new("RGB", (60, 40), colour).save(tmp_path / "pictures" / hooks.picture_name(step))
  live = figure(tmp_path, shown, start=20)
  count = lambda x, colour: int((x[..., :3] == colour).all(-1).sum())
  assert count(shown[-1], (255, 0, 0)) > 1000 and count(shown[-1], (0, 255, 0)) == 0
  assert shown[-1].shape[1] > 800
  live(30, None, {})
  live(40, None, {"loss": 0.5})
  assert count(shown[-1], (0, 255, 0)) > 1000 and count(shown[-1], (255, 0, 0)) == 0
  assert (shown[-1][2, 2] == 255).all()  # white, whatever the page is


def test_drawing_takes_no_more_than_its_share(tmp_path, monkeypatch):
  shown = []
  live = figure(tmp_path, shown)
  for step in range(1, 50):
    live(step, None, {"loss": 1.0})
  assert len(shown) == 1
  live.close()
  assert len(shown) == 2


def test_elsewhere_there_is_none(tmp_path):
  assert not notebook.is_here()
  assert type(hooks.progress(10, 8, 0, tmp_path)) is hooks.LogLine


def test_in_a_kernel_it_is_the_progress(tmp_path, monkeypatch):
  class IPython:
    class Shell:
      kernel = None
    get_ipython = Shell

  monkeypatch.setitem(sys.modules, "IPython", IPython)
  assert notebook.is_here()
  monkeypatch.setattr(notebook, "_output", lambda: lambda png: None)
  assert type(hooks.progress(10, 8, 0, tmp_path)) is notebook.LiveFigure
