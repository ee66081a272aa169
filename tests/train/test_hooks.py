import io
import json
import re
import struct
import time

import jax
import jax.numpy as jnp
import pytest
import rich.console

from dinov3_jax.train import hooks
from dinov3_jax.train.flops import StepFlops
from dinov3_jax.train.state import TrainState


def feed(interval, *steps):
  for step in steps:
    interval.add({name: jnp.float32(value) for name, value in step.items()}, waited=0.0)


def test_interval_averages_what_was_not_skipped_and_keeps_the_last_rate():
  interval = hooks.Interval(images=8)
  feed(interval, {"loss": 1, "lr": 0.1, "skipped": 0},
       {"loss": float("nan"), "lr": 0.2, "skipped": 1}, {"loss": 4, "lr": 0.3, "skipped": 0})
  values = interval.means()
  assert values["loss"] == 2.5
  assert values["lr"] == pytest.approx(0.3)
  assert values["skipped"] == 1
  feed(interval, {"loss": 7, "lr": 0.4, "skipped": 0})
  assert interval.means()["loss"] == 7


def test_interval_of_skipped_steps_has_no_loss():
  interval = hooks.Interval(images=8)
  feed(interval, {"loss": float("nan"), "lr": 0.2, "skipped": 1})
  values = interval.means()
  assert "loss" not in values and values["skipped"] == 1 and values["lr"] == pytest.approx(0.2)


def test_interval_counts_time(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  interval = hooks.Interval(images=8)
  interval.add({"skipped": jnp.float32(0)}, waited=30.0)  # while it compiled
  now[0] += 50
  interval.restart_clock()
  for _ in range(2):
    now[0] += 3
    interval.add({"skipped": jnp.float32(0)}, waited=1.0)
  now[0] += 10
  interval.exclude(10)
  values = interval.means()
  assert values["images_per_second"] == pytest.approx(16 / 6)
  assert values["data_wait"] == pytest.approx(2 / 6)


def test_utilisation_counts_all_operations_and_those_executed(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, "perf_counter", lambda: now[0])
  interval = hooks.Interval(images=8, chips=4, peak=1e12)
  for _ in range(2):
    now[0] += 3
    interval.add({"skipped": jnp.float32(0)}, waited=0.3, flops=StepFlops(6e12, executed=4.5e12))
  values = interval.means()
  assert values["images_per_second_per_chip"] == pytest.approx(16 / 6 / 4)
  assert values["tflops_per_chip_full"] == pytest.approx(0.5)
  assert values["mfu_full"] == pytest.approx(0.5) and values["mfu_executed"] == pytest.approx(0.375)
  line = hooks.LogLine(steps=10, images=8).describe(2, values)
  assert ("2.667 images/s  a chip 0.6667 images/s, 0.5 TFLOP/s (0.375 executed), MFU 50.0% (37.5%)"
          "  waiting for data 10%") in line


def test_json_lines_drop_what_will_be_done_again(tmp_path):
  path = tmp_path / "metrics.jsonl"
  lines = hooks.JsonLines(path, 0)
  for step in (1, 2, 3):
    lines(step, None, {"loss": 1 / 3} if step != 2 else {})
  lines(4, None, {"loss": 4.0})
  lines.close()
  assert [json.loads(line) for line in path.read_text().splitlines()] == [
    {"step": 1, "loss": 0.3333333}, {"step": 3, "loss": 0.3333333}, {"step": 4, "loss": 4.0}]

  path.write_text(path.read_text() + '{"step": 2, "lo')  # cut off by a power failure
  again = hooks.JsonLines(path, 3)
  again(4, None, {"loss": 5.0})
  again.close()
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3, 4]
  assert path.read_text().endswith('"loss": 5.0}\n')
  assert [child.name for child in tmp_path.iterdir()] == ["metrics.jsonl"]


def read_scalars(folder):
  from tensorboardX.proto.event_pb2 import Event
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:  # length, its checksum, record, its checksum
      size, = struct.unpack("<Q", data[:8])
      event = Event.FromString(data[12:12 + size])
      data = data[16 + size:]
      for value in event.summary.value:
        yield event.step, value.tag, value.simple_value


def test_tensorboard_has_every_scalar(tmp_path):
  board = hooks.TensorBoard(tmp_path / "tensorboard", 0)
  board(1, None, {})
  board(2, None, {"loss": 0.5, "grad_norm/backbone": 3.0})
  board(4, None, {"loss": 0.25})
  board.close()
  assert list(read_scalars(tmp_path / "tensorboard")) == [
    (2, "loss", 0.5), (2, "grad_norm/backbone", 3.0), (4, "loss", 0.25)]


METRICS = {"loss": 6.25, "images_per_second": 32.0, "data_wait": 0.125, "skipped": 0,
           "knn_top1": 0.5}


def test_log_line(caplog):
  line = hooks.LogLine(steps=1000, images=16)
  with caplog.at_level("INFO"):
    line(10, None, {})
    line(20, None, METRICS)
  assert [record.getMessage() for record in caplog.records] == [
    "step 20/1000  loss 6.2500  32 images/s  waiting for data 12%  0:08:10 left  knn_top1 0.5000"]
  assert "1 skipped" in line.describe(20, METRICS | {"skipped": 1})
  assert line.describe(20, {"skipped": 2}) == "2 skipped"


def test_progress_bar_draws_and_gives_the_cursor_back():
  console = rich.console.Console(file=io.StringIO(), force_terminal=True, width=160)
  bar = hooks.ProgressBar(1000, 16, start=10, console=console)
  bar(20, None, METRICS)
  bar(21, None, {"loss": 5.0})
  bar.close()
  drawn = console.file.getvalue()
  assert "21/1000" in drawn
  assert "step 20  loss 6.2500  32 images/s" in drawn and "0:08:10 left" in drawn
  assert "21/1000 loss 5.0000" in re.sub(r"\x1b\[\w+", "", drawn) and "step 21" not in drawn
  hidden, shown = "\x1b[?25l", "\x1b[?25h"
  assert drawn.index(shown) < drawn.index("loss")  # and it may be killed any time after
  assert drawn.rindex(shown) > drawn.rindex(hidden)


def test_profile_traces_some_steps(tmp_path):
  add = jax.jit(lambda state: state.replace(step=state.step + 1))
  state = TrainState(jnp.zeros((), jnp.int32), None, None, None, None)
  profile = hooks.Profile(tmp_path, first=2, count=1)
  for step in (1, 2, 3):
    state = add(state)
    profile(step, state, {})
    assert bool(list(tmp_path.rglob("*.xplane.pb"))) == (step >= 2)
  profile.close()


@pytest.mark.parametrize("terminal, kind", [(True, hooks.ProgressBar), (False, hooks.LogLine)])
def test_bar_only_where_there_is_a_terminal(monkeypatch, terminal, kind):
  monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
  shown = hooks.progress(10, 2, 0)
  shown.close()
  assert type(shown) is kind
