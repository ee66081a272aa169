import json

import pytest

from dinov3_jax.train import hooks, prepare, watching
from dinov3_jax.train.watching import Watching, make_watching


class Recorder:
  """Notes what it is called for, and fails at some steps."""

  def __init__(self, *bad_steps):
    self.calls, self.bad_steps, self.closed, self.flushed = [], bad_steps, 0, 0

  def __call__(self, step, state, metrics):
    if step in self.bad_steps:
      raise ValueError(f"no step {step}\nin two lines")
    self.calls.append((step, state, dict(metrics)))

  def flush(self):
    self.flushed += 1

  def close(self):
    self.closed += 1


class Finder(Recorder):
  """An observer that finds a number at even steps."""

  def __call__(self, step, state, metrics):
    super().__call__(step, state, metrics)
    if step % 2 == 0:
      metrics["found"] = 10 * step


def messages(caplog):
  return [record.getMessage() for record in caplog.records]


def test_recorders_get_metrics_and_observers_the_state():
  recorder, observer = Recorder(), Finder()
  made = Watching({"recorder": recorder}, {"observer": observer})
  for step in (1, 2):
    made.record(step, {"loss": 1.0} if step == 1 else {})
    made.observe(step, "state")
  assert recorder.calls == [(1, None, {"loss": 1.0}), (2, None, {}), (2, None, {"found": 20})]
  assert observer.calls == [(1, "state", {}), (2, "state", {})]


def test_observers_see_what_others_have_found():
  last = Recorder()
  Watching({}, {"first": Finder(), "last": last}).observe(2, None)
  assert last.calls == [(2, None, {"found": 20})]


def test_where_one_fails_the_others_go_on(caplog):
  first, second, finder = Recorder(1), Recorder(), Finder()
  made = Watching({"first": first, "second": second}, {"broken": Recorder(2), "finder": finder})
  made.record(1, {"loss": 1.0})
  made.observe(2, "state")
  assert [step for step, *_ in first.calls] == [2] and [step for step, *_ in second.calls] == [1, 2]
  assert made.failures == {"first": 1, "broken": 1}
  assert messages(caplog) == [
    "first failed at step 1 (ValueError: no step 1 in two lines), time 1; training goes on",
    "broken failed at step 2 (ValueError: no step 2 in two lines), time 1; training goes on"]


def test_what_fails_with_every_step_is_told_ever_less_often(caplog):
  steps = range(1, 101)
  made = Watching({"disk": Recorder(*steps)}, {})
  for step in steps:
    made.record(step, {"loss": 1.0})
  made.close()
  told = messages(caplog)
  assert [line.split(", time ")[1].split(";")[0] for line in told[:-1]] == [
    "1", "2", "4", "8", "16", "32", "64"]
  assert told[-1] == "failed beside the training: disk 100 times"


def test_a_long_reason_is_cut_and_none_is_told_as_such(caplog):
  def fail(error):
    def call(*_):
      raise error
    return call

  made = Watching({"a": fail(RuntimeError("x" * 1000)), "b": fail(AssertionError())}, {})
  made.record(7, {})
  assert messages(caplog)[0] == (
    f"a failed at step 7 (RuntimeError: {'x' * 200}), time 1; training goes on")
  assert "b failed at step 7 (AssertionError: no reason given), time 1" in caplog.text


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_shall_end_the_process_does(kind):
  def stop(*_):
    raise kind

  with pytest.raises(kind):
    Watching({"recorder": stop}, {}).record(1, {})


def test_flush_and_close_reach_all_of_them(caplog):
  broken, last, observer = Recorder(), Recorder(), Recorder()

  def fail():
    raise OSError(28, "No space left on device")

  broken.flush = broken.close = fail
  made = Watching({"progress": hooks.LogLine(8, 2), "broken": broken, "last": last},
                  {"observer": observer})
  made.flush()
  assert last.flushed == 1 and observer.flushed == 0
  made.close()
  assert last.closed == observer.closed == 1
  assert messages(caplog)[-1] == "failed beside the training: broken 2 times"
  assert "broken failed (OSError: [Errno 28] No space left on device), time 2" in caplog.text


def test_nothing_is_said_of_what_did_not_fail(caplog):
  made = Watching({"recorder": Recorder()}, {"observer": Recorder()})
  made.record(1, {})
  made.close()
  assert not caplog.records


@pytest.fixture
def run(quick_config, stand_in, tmp_path):
  """A run that is ready to start, in a folder where another process has logged four steps."""
  (tmp_path / "metrics.jsonl").write_text("".join(
    json.dumps({"step": step, "loss": step / 2}) + "\n" for step in (2, 4)))
  made = prepare.prepare(quick_config, tmp_path)
  yield made
  made.pipeline.close()


def test_a_run_is_watched_by_what_it_asks_for(run, monkeypatch):
  made, past = make_watching(run)
  assert list(made._recorders) == ["progress", "metrics.jsonl", "TensorBoard"]
  assert list(made._observers) == [] and past == []  # a fresh start: what was logged is done again
  made.record(1, {"loss": 0.25})
  made.close()
  assert (run.workdir / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.25}\n'
  run.profile = 3
  assert list(make_watching(run)[0]._observers) == ["profile"]
  monkeypatch.setattr(watching.jax, "process_index", lambda: 1)
  assert list(make_watching(run)[0]._recorders) == []  # one process writes


def test_a_run_that_goes_on_knows_its_past(run):
  run.folder = run.workdir / "checkpoints" / "4"
  made, past = make_watching(run)
  assert past == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}]
  made.record(6, {"loss": 3.0})
  made.close()
  assert hooks.read_lines(run.workdir / "metrics.jsonl", 9) == [*past, {"step": 6, "loss": 3.0}]


@pytest.mark.parametrize("bank, held_out, last, done", [
  (True, True, {"knn_top1": 0.5}, 4), (True, True, {"loss": 1.0}, None),
  (False, True, {"loss": 1.0}, 4), (True, False, {"loss": 1.0}, 4)])
def test_an_evaluation_that_was_done_is_not_done_again(run, monkeypatch, bank, held_out, last,
                                                       done):
  """What tells is its result; without labels there is none, and it counts as done."""
  class Images:
    def __init__(self, labelled):
      self.labels = [0] if labelled else None

  seen = []
  monkeypatch.setattr(watching, "Evaluation", lambda *args, done, prefix: seen.append(done))
  run.folder = run.workdir / "checkpoints" / "4"
  run.source, run.held_out = Images(bank), Images(held_out)
  (run.workdir / "metrics.jsonl").write_text(json.dumps({"step": 4} | last) + "\n")
  assert list(make_watching(run)[0]._observers) == ["evaluation"]
  assert seen == [done]


@pytest.mark.parametrize("init_from, done", [("", 0), ("runs/a", None)])
def test_what_somebodys_weights_can_do_is_known_before_the_first_step(run, monkeypatch, init_from,
                                                                     done):
  class Images:
    labels = (0,)

  seen = []
  monkeypatch.setattr(watching, "Evaluation", lambda *args, done, prefix: seen.append(
    (prefix, args[3:], done)))
  run.config.init_from = init_from
  run.source, run.held_out, run.general = Images(), Images(), (Images(), Images())
  assert list(make_watching(run)[0]._observers) == ["evaluation", "general evaluation"]
  assert seen == [("", (run.source, run.held_out), done), ("general/", run.general, done)]
