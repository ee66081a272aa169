import pathlib

from etils import epath

from dinov3_jax.weights.places import expand, is_best, is_native


def test_the_home_directory_is_expanded(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  for path in ("~/a/w.pth", pathlib.Path("~/a/w.pth"), epath.Path("~/a/w.pth")):
    assert str(expand(path)) == str(tmp_path / "a" / "w.pth")
  for path in ("a/~/b", "gs://bucket/run", "~nobody-of-this-name/w.pth"):
    assert str(expand(path)) == path


def test_runs_of_our_trainer(tmp_path):
  assert not is_native(epath.Path(tmp_path)) and not is_native(epath.Path(tmp_path / "absent"))
  (tmp_path / "checkpoints").touch()
  assert not is_native(epath.Path(tmp_path))
  for name in ("state", "run/checkpoints"):
    (tmp_path / name).mkdir(parents=True)
  assert is_native(epath.Path(tmp_path)) and is_native(epath.Path(tmp_path / "run"))


def test_the_file_that_names_the_best_checkpoint(tmp_path):
  path = epath.Path(tmp_path / "checkpoints" / "best")
  assert not is_best(path)
  path.parent.mkdir()
  path.write_text("{}")
  assert is_best(path) and is_native(path)
  (tmp_path / "best").touch()  # of another folder
  assert not is_best(epath.Path(tmp_path / "best"))
