"""The table over all tasks on small data."""

import sys

import pytest

from dinov3_jax.evals import mini_table
from dinov3_jax.evals.mini_plan import Plan


def test_rows(mini_data, session_of, monkeypatch, tmp_path):
  """Models, a baseline that needs no features, and what is done is not done again."""
  session = session_of("DAVIS", limit=1)
  monkeypatch.setattr(mini_table, "sessions", lambda weights, cache: {
    name: session for name in mini_table.COLUMNS[:3]})
  plan = Plan("tracking", "DAVIS", "J&F", 64, baseline="J&F of the first mask, copied")
  monkeypatch.setattr(mini_table, "PLANS", (plan, Plan("knn", "nowhere", "top-1")))
  (first,) = mini_table.rows("W", mini_data)
  assert first[:3] == ["tracking", "DAVIS", "J&F"] and first[3] == first[4] == first[5]
  assert all(0 < float(value) < 100 for value in first[3:])
  assert first[7] != first[3]  # the truth; `test_mini_truth.py` says how much it reaches
  monkeypatch.setattr(Plan, "run", lambda *_: pytest.fail("run again"))
  assert next(mini_table.rows("W", mini_data)) == first


def test_missing_sets_are_written_first(monkeypatch, capsys, tmp_path):
  written = []
  monkeypatch.setattr(mini_table.mini, "write", lambda out, **how: written.append((out, how)))
  monkeypatch.setattr(mini_table, "rows", lambda weights, root: iter([["knn", "folders", "1.0"]]))
  monkeypatch.setattr(mini_table, "PLANS", [
    Plan("knn", "folders", ""), Plan("depth", "NYUv2", ""), Plan("linear", "folders", "")])
  monkeypatch.setattr(sys, "argv", ["mini_table", "--weights", "W", "--data", str(tmp_path)])
  assert mini_table.main() == 0
  assert written == [(str(tmp_path), dict(sets=["folders", "NYUv2"], beside=True))]
  assert capsys.readouterr().out.splitlines()[2] == "| knn | folders | 1.0 |"
  for name in ("folders", "NYUv2"):
    (tmp_path / name).mkdir()
  assert mini_table.main() == 0 and len(written) == 1


def test_errors_are_one_line(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(mini_table, "PLANS", [])
  monkeypatch.setattr(sys, "argv", ["mini_table", "--weights", str(tmp_path / "none"), "--data",
                                    str(tmp_path)])
  assert mini_table.main() == 1
  said = capsys.readouterr().err
  assert said.startswith("error: ") and said.count("\n") == 1
