import io
import logging
import re
import sys

import pytest

from dinov3_jax import console

# As it is: the other tests leave logging to pytest, and replace this.
set_up_unless_done = console.set_up_unless_done
ROOT, OURS = logging.getLogger(), logging.getLogger("dinov3_jax")


@pytest.fixture(autouse=True)
def logging_from_scratch():
  """Logging as a new process has it; pytest's own is put back after the test."""
  former = [(logger, logger.handlers, logger.level, logger.propagate) for logger in (ROOT, OURS)]
  ROOT.handlers, OURS.handlers = [], []
  ROOT.setLevel(logging.WARNING)
  OURS.setLevel(logging.NOTSET)
  OURS.propagate = True
  yield
  for logger, handlers, level, propagate in former:
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


def lines(text):
  """What was printed, without the time that each line begins with."""
  return [re.fullmatch(r"\d\d:\d\d:\d\d (.*)", line)[1] for line in text.splitlines()]


@pytest.mark.parametrize("set_up", [console.set_up, set_up_unless_done])
def test_our_own_lines_have_a_time_and_are_printed_once(set_up, capsys):
  set_up()
  logging.getLogger("dinov3_jax.train.loop").info("step %d", 3)
  logging.getLogger("dinov3_jax").debug("not told")
  out, err = capsys.readouterr()
  assert lines(out) == ["step 3"] and err == ""


def test_warnings_are_for_the_error_stream(capsys):
  console.set_up()
  OURS.warning("careful")
  OURS.error("wrong")
  out, err = capsys.readouterr()
  assert out == "" and lines(err) == ["careful", "wrong"]


def test_of_libraries_warnings_alone(capsys):
  console.set_up()
  logging.getLogger("jax").info("chatter")
  logging.getLogger("jax").warning("careful")
  out, err = capsys.readouterr()
  assert out == "" and lines(err) == ["careful"]


def test_another_level_for_our_own(capsys):
  """As for all processes but the first."""
  console.set_up(logging.WARNING)
  OURS.info("chatter")
  OURS.warning("careful")
  out, err = capsys.readouterr()
  assert out == "" and lines(err) == ["careful"]


def test_what_libraries_have_set_up_is_replaced(capsys):
  other = io.StringIO()
  ROOT.addHandler(logging.StreamHandler(other))
  for _ in range(2):
    console.set_up()
  OURS.info("step 3")
  assert lines(capsys.readouterr().out) == ["step 3"] and other.getvalue() == ""


def test_a_handler_of_the_users_own_is_left_alone(capsys):
  mine = io.StringIO()
  OURS.addHandler(logging.StreamHandler(mine))
  OURS.setLevel(logging.INFO)
  set_up_unless_done()
  OURS.info("step 3")
  assert mine.getvalue() == "step 3\n" and capsys.readouterr().out == ""


def test_a_level_of_the_users_own_is_left_alone(capsys):
  """Of the root logger, as `logging.basicConfig` sets it."""
  mine = io.StringIO()
  ROOT.addHandler(logging.StreamHandler(mine))
  ROOT.setLevel(logging.INFO)
  set_up_unless_done()
  OURS.info("step 3")
  assert mine.getvalue() == "step 3\n" and capsys.readouterr().out == ""


def test_libraries_that_add_a_handler_do_not_keep_us_silent(capsys):
  """absl and TensorFlow put one on the root logger, at the level of warnings."""
  other = io.StringIO()
  ROOT.addHandler(logging.StreamHandler(other))
  for _ in range(2):
    set_up_unless_done()
  OURS.info("step 3")
  assert lines(capsys.readouterr().out) == ["step 3"] and other.getvalue() == ""


def test_a_stream_that_takes_the_place_of_the_terminal_gets_the_lines(monkeypatch):
  """As a progress bar's does."""
  console.set_up()
  bar = io.StringIO()
  monkeypatch.setattr(sys, "stdout", bar)
  OURS.info("step 3")
  assert lines(bar.getvalue()) == ["step 3"]


class Gone(io.StringIO):
  """The terminal of a session that was closed."""

  def write(self, text):
    raise OSError(5, "Input/output error")


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch, capsys):
  console.set_up()
  closed = io.StringIO()
  closed.close()
  for stream in (Gone(), closed):
    monkeypatch.setattr(sys, "stdout", stream)
    OURS.info("step 3")
  monkeypatch.undo()
  OURS.info("step 4")
  assert lines(capsys.readouterr().out) == ["step 4"]


def test_what_a_terminal_cannot_show_costs_no_line(monkeypatch):
  """A path in another script, on a terminal that knows ASCII alone."""
  console.set_up()
  raw = io.BytesIO()
  monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
  OURS.info("reading %s", "/data/köpfe")
  assert lines(raw.getvalue().decode()) == ["reading /data/k\\xf6pfe"]
