import argparse
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from dinov3_jax import curate
from dinov3_jax.models.variants import VARIANTS, Variant

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def images(tmp_path, monkeypatch):
  """Sixty images of three colours, ten copies of one of them, and one that is damaged."""
  settings = dict(width=32, depth=2, num_heads=2, patch_size=8, storage_tokens=1, layerscale=1.0)
  monkeypatch.setitem(VARIANTS, "vits16", Variant(settings, VARIANTS["vits16"].releases))
  monkeypatch.chdir(tmp_path)
  rng = np.random.default_rng(0)
  for i in range(60):
    noise = rng.integers(-60, 60, (24, 24, 3))
    save(tmp_path / "pool" / "abc"[i % 3] / f"{i:02}.png", np.eye(3)[i % 3] * 120 + 70 + noise)
  copied = (tmp_path / "pool" / "a" / "00.png").read_bytes()
  for i in range(10):
    (tmp_path / "pool" / "a" / f"copy{i}.png").write_bytes(copied)
  (tmp_path / "pool" / "b" / "99.png").write_bytes(b"damaged")
  for i in range(5):
    noise = rng.integers(-60, 60, (24, 24, 3))
    save(tmp_path / "set" / f"{i}.png", np.eye(3)[1] * 120 + 70 + noise)
  return tmp_path


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.clip(array, 0, 255).astype(np.uint8)).save(path)


def command(monkeypatch, *arguments):
  """The exit code."""
  monkeypatch.setattr(sys, "argv", ["curate", *map(str, arguments)])
  return curate.main()


MODEL = ("--weights", "random", "--model", "vits16", "--size", "16")


def test_all_steps(images, monkeypatch, capsys):
  run = lambda *arguments: command(monkeypatch, *arguments)
  assert run("embed", "pool", "--dir", "c", *MODEL, "--shard", 30) == 0
  output = capsys.readouterr().out
  assert "c/features: 70 images in 3 files, 32 features each; 1 images left out" in output
  assert run("embed", "set", "--dir", "s", *MODEL) == 0
  assert run("dedup", "--dir", "c", "--threshold", 0.9999, "--against", "s",
             "--against-threshold", 0.9999) == 0
  assert "c/unique: 60 images left; 10 duplicates in 1 groups; 0 resemble s" in (
    capsys.readouterr().out)
  assert run("cluster", "--dir", "c", "--levels", "12,3", "--of", "unique", "--rounds", 2) == 0
  assert "60 images in 12 / 3 clusters" in capsys.readouterr().out
  assert run("cluster", "--dir", "c", "--levels", "3x4,3", "--rounds", 0, "--name", "two") == 0
  assert run("sample", "--dir", "c", "--target", 20) == 0
  assert "c/sample: 20 images, 20 different; evenness of the highest" in capsys.readouterr().out
  assert run("retrieve", "--dir", "c", "--seeds", "s", "--k", 3) == 0
  assert run("retrieve", "--dir", "c", "--seeds", "s", "--k", 0, "--clusters", "clusters",
             "--least", 1, "--name", "whole") == 0
  assert "c/retrieved: 15 images" in capsys.readouterr().out
  assert run("mix", "--dir", "c", "sample=2", "retrieved=1", "--homogeneous", "set=0.1",
             "--split", "all") == 0
  assert "sample 66.7%, retrieved 33.3%, set 10.0%" in capsys.readouterr().out
  assert run("look", "--dir", "c", "--level", 2) == 0
  assert "c/look/index.html, c/report.md" in capsys.readouterr().out
  # Found by colour: the neighbours of green images are green.
  names = pathlib.Path("c/retrieved/names.txt").read_text().splitlines()
  assert sum(name.startswith("b/") for name in names) >= 12
  report = pathlib.Path("c/report.md").read_text()
  assert "\npython -m dinov3_jax.curate embed pool --dir c --weights random" in report
  for step in ("dedup", "cluster", "sample", "retrieve", "mix"):
    assert f"({step})" in report
  # Once more with other settings would mix two results up.
  assert run("sample", "--dir", "c", "--target", 21) == 1
  assert capsys.readouterr().err.endswith(
    "error: c/sample was made with other settings (target): delete it, or choose another --name\n")


@pytest.mark.parametrize("arguments, message", [
  (["sample", "--dir", "none", "--target", 3], "none/features has no features"),
  (["embed", "none", "--dir", "c", *MODEL], "no folder of images at none"),
  (["embed", "pool", "--dir", "c", *MODEL, "--shard", 0], "must be at least 1"),
  (["embed", "pool", "--dir", "c", "--weights", "random"], "random weights need a --model")])
def test_errors_are_one_line(images, monkeypatch, capsys, arguments, message):
  assert command(monkeypatch, *arguments) == 1
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("error: ") and message in error


def test_two_commands_at_one_result(images, monkeypatch, capsys):
  from dinov3_jax.data.lock import FolderLock
  assert command(monkeypatch, "embed", "set", "--dir", "c", *MODEL) == 0
  with FolderLock("c/clusters", "curate"):
    assert command(monkeypatch, "cluster", "--dir", "c", "--levels", "2") == 1
  assert "error: c/clusters is in use" in capsys.readouterr().err
  assert command(monkeypatch, "cluster", "--dir", "c", "--levels", "2", "--name", "../x") == 1
  assert "cannot name a result" in capsys.readouterr().err
  assert not pathlib.Path("x").exists()


def test_a_part_that_is_nothing(images, monkeypatch, capsys):
  assert command(monkeypatch, "embed", "set", "--dir", "c", *MODEL) == 0
  assert command(monkeypatch, "mix", "--dir", "c", "nothing=1") == 1
  assert "nothing is neither a result in c nor a source" in capsys.readouterr().err


def test_arguments():
  assert curate.levels("1000,100,10") == [(1000, 1), (100, 1), (10, 1)]
  assert curate.levels("300x50,100") == [(300, 50), (100, 1)]
  assert curate.weighted("a=b=0.5") == ("a=b", 0.5) and curate.weighted("a") == ("a", None)
  for wrong in (lambda: curate.levels("10,x"), lambda: curate.weighted("a=much")):
    with pytest.raises(argparse.ArgumentTypeError):
      wrong()


@pytest.mark.slow
def test_killed_in_the_middle(images):
  """A real SIGKILL, once the first file is there; the same command ends where another began."""
  (images / "pool" / "b" / "99.png").unlink()
  # One device, and code that is optimised: here the model is a real one.
  environment = dict(os.environ, PYTHONPATH=str(ROOT), XLA_FLAGS="")

  def start(folder):
    return subprocess.Popen(
      [sys.executable, "-m", "dinov3_jax.curate", "embed", "pool", "--dir", folder, "--weights",
       "random", "--model", "vits16", "--size", "32", "--shard", "4", "--batch-size", "4"],
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

  process = start("killed")
  while not list(images.glob("killed/features/*.npy")):
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  before = {file: file.stat().st_mtime_ns for file in images.glob("killed/features/*.npy")}
  assert 0 < len(before) < 18
  for folder in ("killed", "whole"):
    process = start(folder)
    out, error = process.communicate()
    assert process.returncode == 0 and "70 images in 18 files" in out, error
  kept = [file for file in before if file.with_suffix(".json").exists()
          and file.stat().st_mtime_ns == before[file]]
  assert len(kept) >= len(before) - 1  # the one whose names were not written yet is made again
  made = [file for file in images.glob("whole/features/*") if file.suffix in (".npy", ".json")]
  assert len(made) == 2 * 18 + 1
  for file in made:
    assert file.read_bytes() == (images / "killed" / "features" / file.name).read_bytes()
