import io
import json
import os
import re
import struct
import time

import jax
import jax.numpy as jnp
import pytest
import rich.console
from PIL import Image

from dinov3_jax.costs.flops import StepFlops
from dinov3_jax.train import hooks
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


@pytest.fixture
def path(tmp_path):
  return tmp_path / "metrics.jsonl"


def written(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_second_call_for_a_step_adds_to_its_line(path):
  lines = hooks.JsonLines(path, 0)
  lines(1, None, {"loss": 1.0})
  lines(2, None, {"loss": 2.0})
  lines(2, None, {"knn_top1": 0.5, "knn_top5": 0.75})
  assert written(path)[1] == {"step": 2, "loss": 2.0, "knn_top1": 0.5, "knn_top5": 0.75}
  lines(3, None, {})
  lines(4, None, {"loss": 4.0})
  lines.close()
  assert [line["step"] for line in written(path)] == [1, 2, 4] and len(written(path)[1]) == 4


def test_a_line_is_added_to_after_a_restart(path):
  """Which does the evaluation that a kill has cost."""
  lines = hooks.JsonLines(path, 0)
  lines(1, None, {"loss": 1.0})
  lines(2, None, {"loss": 2.0})
  lines.close()
  lines = hooks.JsonLines(path, 2)
  lines(2, None, {"knn_top1": 0.5})
  lines(3, None, {"loss": 3.0})
  lines.close()
  assert written(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0, "knn_top1": 0.5},
                           {"step": 3, "loss": 3.0}]


@pytest.mark.parametrize("end", [b"\r\n", b" \n", b"\n"])
def test_a_line_that_an_editor_has_touched_is_added_to(path, end):
  path.write_bytes(b'{"step": 2, "loss": 2.0}' + end)
  lines = hooks.JsonLines(path, 2)
  lines(2, None, {"knn_top1": 0.5})
  lines.close()
  assert path.read_bytes() == b'{"step": 2, "loss": 2.0, "knn_top1": 0.5}\n'


def test_every_line_is_one_write(path, monkeypatch):
  """So that a kill at any time leaves whole lines."""
  states, pwrite = [], os.pwrite

  def write(file, data, offset):
    count = pwrite(file, data, offset)
    states.append(path.read_bytes())
    return count

  monkeypatch.setattr(os, "pwrite", write)
  lines = hooks.JsonLines(path, 0)
  lines(1, None, {"loss": 1.0})
  lines(1, None, {"knn_top1": 0.5})
  lines(2, None, {"loss": 2.0})
  assert [[sorted(json.loads(line)) for line in state.splitlines()] for state in states] == [
    [["loss", "step"]], [["knn_top1", "loss", "step"]],
    [["knn_top1", "loss", "step"], ["loss", "step"]]]
  assert all(state.endswith(b"}\n") for state in states)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_disk_that_takes_half_a_line_costs_no_other(path, monkeypatch, share):
  lines, pwrite = hooks.JsonLines(path, 0), os.pwrite
  lines(1, None, {"loss": 1.0})
  for step, metrics in ((1, {"knn_top1": 0.123456}), (2, {"loss": 2.0, "koleo_loss": 0.123456})):
    with monkeypatch.context() as patch:
      patch.setattr(os, "pwrite", lambda file, data, offset: pwrite(
        file, data[:int(share * len(data))] if len(data) > 2 else data, offset))
      with pytest.raises(OSError, match=r"metrics\.jsonl took only a part of a line"):
        lines(step, None, metrics)
    assert path.read_bytes() == b'{"step": 1, "loss": 1.0}\n'
  lines(3, None, {"loss": 3.0})
  lines(3, None, {"knn_top1": 0.5})
  lines.close()
  assert written(path) == [{"step": 1, "loss": 1.0}, {"step": 3, "loss": 3.0, "knn_top1": 0.5}]


def test_a_file_that_is_shorter_after_a_restart(path):
  """Lines that a power cut took do not come back as zeros."""
  lines = hooks.JsonLines(path, 0)
  for step in (1, 2, 3):
    lines(step, None, {"loss": float(step)})
  lines.close()
  path.write_bytes(path.read_bytes()[:30])  # amid the second line
  assert hooks.read_lines(path, 3) == [{"step": 1, "loss": 1.0}]
  lines = hooks.JsonLines(path, 3)
  lines(4, None, {"loss": 4.0})
  lines.close()
  assert written(path) == [{"step": 1, "loss": 1.0}, {"step": 4, "loss": 4.0}]


def test_a_folder_in_the_place_of_the_file(path):
  path.mkdir()
  assert hooks.read_lines(path, 3) == []
  lines = hooks.JsonLines(path, 0)
  for _ in range(2):  # it is tried again with every line
    with pytest.raises(OSError, match="Is a directory"):
      lines(1, None, {"loss": 1.0})
  lines.flush()
  lines.close()
  path.rmdir()
  lines(2, None, {"loss": 2.0})
  assert written(path) == [{"step": 2, "loss": 2.0}]


def every_event(folder):
  """All that was written to TensorBoard."""
  from tensorboardX.proto.event_pb2 import Event
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:  # length, its checksum, record, its checksum
      size, = struct.unpack("<Q", data[:8])
      event = Event.FromString(data[12:12 + size])
      data = data[16 + size:]
      yield event


def read_events(folder):
  """Step and value of all summaries."""
  return [(event.step, value) for event in every_event(folder) for value in event.summary.value]


def read_scalars(folder):
  return [(step, value.tag, value.simple_value) for step, value in read_events(folder)]


def test_tensorboard_has_every_scalar(tmp_path):
  board = hooks.TensorBoard(tmp_path / "tensorboard", 0)
  board(1, None, {})
  board(2, None, {"loss": 0.5, "grad_norm/backbone": 3.0})
  board(4, None, {"loss": 0.25})
  board.close()
  assert read_scalars(tmp_path / "tensorboard") == [
    (2, "loss", 0.5), (2, "grad_norm/backbone", 3.0), (4, "loss", 0.25)]


def test_tensorboard_hides_what_will_be_done_again(tmp_path):
  """By the event that tells it from which step on a new session begins."""
  board = hooks.TensorBoard(tmp_path, 6)
  board(8, None, {"loss": 0.5})
  board.close()
  starts = [event.step for event in every_event(tmp_path) if event.HasField("session_log")]
  assert starts == [7]


def test_tensorboard_has_the_settings_as_they_are(tmp_path):
  board = hooks.TensorBoard(tmp_path, 0, settings='{\n  "seed": 0\n}')
  board(3, None, {"loss": 1.0})
  board(4, None, {"loss": 1.0})
  board.close()
  texts = [(step, value.tensor.string_val[0].decode()) for step, value in read_events(tmp_path)
           if value.tag.startswith("settings")]
  assert texts == [(3, '\n    {\n      "seed": 0\n    }')]  # indented: as code in Markdown


def test_tensorboard_is_on_disk_when_it_is_flushed(tmp_path):
  board = hooks.TensorBoard(tmp_path, 0)
  board.flush()  # before there is anything
  board(1, None, {"loss": 0.5})
  board.flush()
  assert read_scalars(tmp_path) == [(1, "loss", 0.5)]
  board.close()


def test_after_a_write_that_failed_tensorboard_goes_on_in_another_file(tmp_path, monkeypatch):
  """The first one may end amid a record, behind which nothing is read."""
  from tensorboardX.event_file_writer import EventsWriter

  def full(*_):
    raise OSError(28, "No space left on device")

  board = hooks.TensorBoard(tmp_path, 4)
  board(5, None, {"loss": 5.0})
  board.flush()
  with monkeypatch.context() as patch:
    patch.setattr(EventsWriter, "write_event", full)
    for step in (6, 7):
      with pytest.raises(OSError, match="No space left"):
        board(step, None, {"loss": float(step)})
  board(8, None, {"loss": 8.0})
  board.close()
  assert sorted(read_scalars(tmp_path)) == [(5, "loss", 5.0), (8, "loss", 8.0)]
  first = min(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
  assert b"loss" in first.read_bytes() and len(list(tmp_path.iterdir())) >= 2


def draw(folder, step, colour):
  folder.mkdir(exist_ok=True)
  Image.new("RGB", (6, 4), colour).save(folder / hooks.picture_name(step))


def shown(folder):
  """Step and colour of the pictures in TensorBoard."""
  for step, value in read_events(folder):
    if value.HasField("image"):
      assert value.tag == "patches" and (value.image.height, value.image.width) == (4, 6)
      yield step, Image.open(io.BytesIO(value.image.encoded_image_string)).getpixel((0, 0))


RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize("labelled", [True, False])
def test_tensorboard_has_every_picture_once(tmp_path, labelled):
  """Those of an evaluation without labels, too, which has no metrics to write."""
  pictures = tmp_path / "pictures"
  draw(pictures, 3, BLUE)  # of a process that got further, and will be drawn again
  board = hooks.TensorBoard(tmp_path / "board", 0, pictures)
  for step in range(1, 7):
    board(step, None, {"loss": 1.0} if step % 2 == 0 else {})
    if step % 3 == 0:
      draw(pictures, step, RED)
      if labelled:
        board(step, None, {"knn_top1": 0.5})
  board.close()
  assert list(shown(tmp_path / "board")) == [(3, RED), (6, RED)]


def test_tensorboard_has_the_picture_of_a_step_that_is_evaluated_after_a_restart(tmp_path):
  pictures = tmp_path / "pictures"
  draw(pictures, 2, BLUE)  # by the earlier process, which has shown it
  draw(pictures, 4, RED)
  board = hooks.TensorBoard(tmp_path / "board", 4, pictures)
  board(4, None, {"knn_top1": 0.5})
  board(5, None, {"loss": 1.0})
  board.close()
  assert list(shown(tmp_path / "board")) == [(4, RED)]


def test_a_picture_that_is_damaged_costs_itself_alone(tmp_path):
  pictures = tmp_path / "pictures"
  draw(pictures, 1, RED)
  (pictures / hooks.picture_name(1)).write_bytes(b"no picture")
  board = hooks.TensorBoard(tmp_path / "board", 0, pictures)
  board(1, None, {"loss": 1.0})
  with pytest.raises(OSError, match="cannot identify image"):
    board(2, None, {"loss": 2.0})
  board(3, None, {"loss": 3.0})
  board.close()
  assert read_scalars(tmp_path / "board") == [(step, "loss", step) for step in (1, 2, 3)]


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
  shown = hooks.progress(10, 2, 0, ".")
  shown.close()
  assert type(shown) is kind
