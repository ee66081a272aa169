"""The command: tables, files, errors, and going on after a stop."""

import json
import os
import shutil
import signal
import sys
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

import dinov3_jax
from dinov3_jax import evaluate
from dinov3_jax.evals import extraction
from dinov3_jax.evals.catalogue import TASKS
from dinov3_jax.evals.session import Result
from dinov3_jax.models.variants import VARIANTS, Variant

RANDOM = ("--weights", "random", "--model", "vits16", "--size", "16")


@pytest.fixture(autouse=True)
def small_variant(monkeypatch):
  settings = dict(width=32, depth=2, num_heads=2, patch_size=8, storage_tokens=1, layerscale=1.0)
  monkeypatch.setitem(VARIANTS, "vits16", Variant(settings, VARIANTS["vits16"].releases))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Twelve photographs of AmsterTime, each old one the same as its new one."""
  folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
  for i in range(12):
    image = Image.fromarray(rng.integers(0, 256, (24, 30, 3), np.uint8))
    for side in ("new", "old"):
      (folder / side).mkdir(exist_ok=True)
      image.save(folder / side / f"{i:04}.png")
  return folder


def command(monkeypatch, *arguments):
  """The exit code of the command."""
  monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
  return evaluate.main()


def test_table_and_files(pairs, tmp_path, monkeypatch, capsys):
  out = tmp_path / "out"
  assert command(monkeypatch, "amstertime", *RANDOM, "--data", pairs, "--out", out) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].split() == ["amstertime", "ours"] and lines[1].split() == ["mAP", "100.00"]
  assert "  not as in the paper: images of 16 pixels, not 224" in lines
  result = json.loads((out / "results.json").read_text())["amstertime"]
  assert result["figures"]["mAP"] == 100 and result["protocol"] == dict(size=16, pairs=12)
  assert len(result["digest"]) == 64 and result["versions"].keys() == {"dinov3_jax", "jax"}
  assert (out / "amstertime" / "amstertime.png").exists()


def test_results_of_other_tasks_stay(pairs, tmp_path, monkeypatch):
  (tmp_path / "results.json").write_text('{"knn": {"figures": {}}}')
  assert command(monkeypatch, "amstertime", *RANDOM, "--data", pairs, "--out", tmp_path) == 0
  assert set(json.loads((tmp_path / "results.json").read_text())) == {"knn", "amstertime"}


def test_results_of_other_data_are_not_overwritten(pairs, tmp_path, monkeypatch, capsys):
  shutil.copytree(pairs, tmp_path / "other")
  out = tmp_path / "out"
  arguments = ("amstertime", *RANDOM, "--out", out, "--data")
  assert command(monkeypatch, *arguments, pairs) == 0
  before = (out / "results.json").read_text()
  assert command(monkeypatch, *arguments, tmp_path / "other") == 1
  said = f"has amstertime of {pairs}, which that of {tmp_path / 'other'} would replace: choose"
  assert said in capsys.readouterr().err
  assert (out / "results.json").read_text() == before
  monkeypatch.chdir(pairs.parent)  # the same folder in other words
  assert command(monkeypatch, *arguments, f"{pairs.name}/") == 0


def test_it_goes_on_after_a_stop(pairs, tmp_path, monkeypatch, capsys):
  extract, calls = extraction.extract, []

  def stopped(*args, **settings):
    calls.append(1)
    if len(calls) == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return extract(*args, **settings)

  monkeypatch.setattr("dinov3_jax.evals.session.extract", stopped)
  arguments = ("amstertime", *RANDOM, "--data", pairs, "--out", tmp_path, "--batch-size", "8")
  assert command(monkeypatch, *arguments) == 128 + signal.SIGTERM
  assert "interrupted; the same command goes on from here" in capsys.readouterr().err
  assert not (tmp_path / "results.json").exists()
  assert command(monkeypatch, *arguments) == 0
  assert len(calls) == 3  # the features of the new ones were there


@pytest.mark.parametrize("arguments, message", [
  (("--data", "nowhere"), "--data nowhere is no folder"),
  (("--limit", "0"), "--limit must be at least 1"),
  (("--size", "12"), "a size of 12 is no whole number of the model's patches of 8: take --size 8"),
  (("--set", "frames"), "--set wants NAME=VALUE, such as --set frames=8"),
])
def test_errors_are_one_line(pairs, tmp_path, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(tmp_path)
  assert command(monkeypatch, "amstertime", *RANDOM, "--data", pairs, *arguments) == 1
  (line,) = [x for x in capsys.readouterr().err.splitlines() if x]
  assert line.startswith(f"error: {message}")


@pytest.mark.parametrize("tasks, said", [
  (["amstertime"], "none of these tasks has the option frame; there is none"),
  (["amstertime", "pca", "depth"],
   "none of these tasks has the option frame; there are rate_factor, skip")])
def test_options_that_no_task_has_are_told_before_any_work(pairs, tmp_path, monkeypatch, capsys,
                                                           tasks, said):
  arguments = (*tasks, *RANDOM, "--data", pairs, "--out", tmp_path / "out", "--set", "frame=8")
  assert command(monkeypatch, *arguments) == 1
  assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_urls_of_sources(pairs, tmp_path, monkeypatch, capsys):
  """They are data as paths are, and results.json has them as they were given."""
  monkeypatch.setenv("DINOV3_JAX_CACHE", str(tmp_path / "index"))
  tar = tmp_path / "x.tar"
  with tarfile.open(tar, "w") as file:
    for i, path in enumerate(sorted((pairs / "new").iterdir())):
      file.add(path, f"{'train' if i < 8 else 'val'}/{'ab'[i % 2]}/{path.name}")
  fsspec.filesystem("memory").pipe("/evaluate/x.tar", tar.read_bytes())
  (tmp_path / "list.csv").write_text("".join(
    f"memory://evaluate/{i}.png,{'ab'[i % 2]},{'train' if i < 8 else 'val'}\n" for i in range(12)))
  for i, path in enumerate(sorted((pairs / "new").iterdir())):
    fsspec.filesystem("memory").pipe(f"/evaluate/{i}.png", path.read_bytes())
  fsspec.filesystem("memory").pipe("/evaluate/list.csv", (tmp_path / "list.csv").read_bytes())
  found = []
  for data in (str(tar), f"file://{tar}", "memory://evaluate/x.tar",
               "manifest:memory://evaluate/list.csv"):
    out = tmp_path / str(len(found))
    assert command(monkeypatch, "knn", *RANDOM, "--data", data, "--out", out) == 0
    result = json.loads((out / "results.json").read_text())["knn"]
    assert result["data"] == data
    found.append([result["figures"], result["protocol"]])
  assert found[1:] == found[:1] * 3
  assert command(monkeypatch, "knn", *RANDOM, "--data", "memory://evaluate/none.tar") == 1
  assert "memory://evaluate/none.tar" in capsys.readouterr().err


def test_a_wrong_layout_says_what_is_wanted(pairs, tmp_path, monkeypatch, capsys):
  assert command(monkeypatch, "tracking", *RANDOM, "--data", pairs, "--out", tmp_path) == 1
  error = capsys.readouterr().err
  assert "has no ImageSets/2017/val.txt (it has new, old): wanted is DAVIS" in error


def test_foreign_results_are_not_overwritten(pairs, tmp_path, monkeypatch, capsys):
  (tmp_path / "results.json").write_text("[]")
  assert command(monkeypatch, "amstertime", *RANDOM, "--data", pairs, "--out", tmp_path) == 1
  assert "holds no results" in capsys.readouterr().err


def test_unknown_tasks(pairs, monkeypatch, capsys):
  with pytest.raises(SystemExit):
    command(monkeypatch, "chess", *RANDOM, "--data", pairs)
  assert "invalid choice: 'chess'" in capsys.readouterr().err


def test_the_paper_stands_beside():
  result = Result({"mAP": 50.0, "top-1": 1.0}, {}, ["one thing"], {"vitb16": {"mAP": 56.5}})
  assert evaluate.table("a", result, "vitb16").splitlines() == [
    "a         ours    paper", "mAP      50.00     56.5", "top-1     1.00",
    "  not as in the paper: one thing"]
  assert "paper  " not in evaluate.table("a", result, "vits16")


def test_help_lists_all_tasks():
  text = evaluate.parser().format_help()
  assert all(f"    {name} " in text and task.layout in text for name, task in TASKS.items())


def test_the_function(pairs, tmp_path, caplog):
  how = dict(model="vits16", size=16, cache=tmp_path / "cache")
  result = dinov3_jax.evaluate("amstertime", "random", pairs, **how)
  assert list(result) == ["amstertime"] and result["amstertime"].figures["mAP"] == 100
  assert not list(tmp_path.glob("*.json"))
  for tasks, data, message in ((["amstertime", "nothing"], pairs, "there is no task nothing: take"),
                               ("knn", tmp_path / "none", "--data .* is no folder")):
    with pytest.raises(ValueError, match=message):
      dinov3_jax.evaluate(tasks, "random", data, **how)
