"""The command that writes small data sets."""

import sys

import pytest

from dinov3_jax.evals import mini


def test_equal_seeds_give_equal_files(tmp_path, shapes):
  for name in ("a", "b"):
    mini.write(tmp_path / name, 3, shapes, ["AmsterTime"])
  files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
  assert [str(file) for file in files[:2]] == ["AmsterTime/new/0000.png", "AmsterTime/new/0001.png"]
  for file in files:
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
  with pytest.raises(ValueError, match="is there already"):
    mini.write(tmp_path / "a", 3, shapes)


def test_a_set_that_was_cut_short_has_no_name(tmp_path, shapes, monkeypatch):
  def cut(out, drawings, rng):
    out.mkdir()
    (out / "half").touch()
    raise KeyboardInterrupt

  kept = mini.SETS["AmsterTime"]
  monkeypatch.setitem(mini.SETS, "AmsterTime", (cut, ""))
  (tmp_path / "data").mkdir()
  with pytest.raises(KeyboardInterrupt):
    mini.write(tmp_path / "data", 3, shapes, ["AmsterTime"])
  assert not (tmp_path / "data/AmsterTime").exists()
  monkeypatch.setitem(mini.SETS, "AmsterTime", kept)
  mini.write(tmp_path / "data", 3, shapes, ["AmsterTime"], beside=True)
  assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["AmsterTime"]
  assert not (tmp_path / "data/AmsterTime/half").exists()


def test_command(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["mini", "--out", str(tmp_path)])
  (tmp_path / "something").touch()
  assert mini.main() == 1 and "is there already" in capsys.readouterr().err
