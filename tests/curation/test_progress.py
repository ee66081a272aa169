import io

from rich.console import Console

from dinov3_jax.curation import progress


def test_a_part_of_a_report():
  seen = []
  inner = progress.part(progress.part(lambda *x: seen.append(x), 0.5, 1), 0, 0.5)
  inner(0, "a")
  inner(1, "b")
  assert seen == [(0.5, "a"), (0.75, "b")]
  progress.silent(1, "nobody looks")


def test_bar_shows_share_text_and_time_left(monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(progress, "Console", lambda stderr: Console(
    file=out, force_terminal=True, width=120))
  with progress.bar() as report:
    report(0.25, "level1: seeds")
    report(0.5, "level1: iteration 3 of 50")
  assert "100%" in out.getvalue() and "0:00:00" in out.getvalue()
  out.truncate(0)
  with progress.bar(False) as report:
    report(0.5, "hidden")
  assert "hidden" not in out.getvalue()
