import json
import os

import jax.numpy as jnp
import pytest

from configs import base
from dinov3_jax.data.sources import open_source
from dinov3_jax.train import loop
from dinov3_jax.train.best import Best
from dinov3_jax.train.writer import Writer
from dinov3_jax.weights import native

SETTINGS = base.get_config()


def names(workdir):
  return sorted(os.listdir(workdir / "checkpoints"))


def follow(workdir, values, past=(), first=1, keep=1):
  """Saves and evaluates a step for each value."""
  with Writer(workdir, keep=keep, keep_every=0) as writer:
    best = Best("knn_top1", workdir, writer, past)
    for step, value in enumerate(values, first):
      writer.save(step, {"cls_token": jnp.full(3, float(step))}, {}, SETTINGS)
      best(step, {"knn_top1": value, "rankme": 1.0})


@pytest.mark.parametrize("values, best, kept", [
  ([0.1, 0.5, 0.3, 0.2], 2, "24"), ([0.5, 0.1, 0.2, 0.3], 1, "14"),
  ([0.1, 0.2, 0.3, 0.4], 4, "34"),  # the former one goes with the next that is saved
  ([0.2, 0.2, 0.2, 0.2], 1, "14"), ([float("nan"), 0.1, float("nan"), 0.0], 2, "24")])
def test_the_best_is_named_and_kept_beside_the_newest(tmp_path, values, best, kept):
  follow(tmp_path, values)
  assert names(tmp_path) == [*kept, "best"]
  named = json.loads((tmp_path / "checkpoints" / "best").read_text())
  assert named == {"step": best, "metric": "knn_top1", "value": values[best - 1]}
  assert native.locate(tmp_path / "checkpoints" / "best").name == str(best)
  assert native.latest(tmp_path).name == "4"


def test_a_restart_knows_it_from_the_metrics(tmp_path):
  follow(tmp_path, [0.1, 0.5, 0.3])
  (tmp_path / "checkpoints" / "best").unlink()  # as if it was killed right before
  past = [{"step": step, "knn_top1": value} for step, value in enumerate([0.1, 0.5, 0.3], 1)]
  follow(tmp_path, [0.4], past, first=4)
  assert names(tmp_path) == ["2", "4", "best"]
  follow(tmp_path, [0.6], [*past, {"step": 4, "knn_top1": 0.4}], first=5)
  follow(tmp_path, [0.3], [{"step": 5, "knn_top1": 0.6}], first=6)
  assert names(tmp_path) == ["5", "6", "best"]


def test_a_better_one_whose_checkpoint_is_gone_is_not_the_best(tmp_path):
  follow(tmp_path, [0.1, 0.2, 0.1])
  follow(tmp_path, [0.3], [{"step": 1, "knn_top1": 0.9}, {"step": 2, "knn_top1": 0.2}], first=4)
  assert native.locate(tmp_path / "checkpoints" / "best").name == "4"


def test_what_was_the_best_stays_where_no_metric_is_followed_any_more(tmp_path):
  follow(tmp_path, [0.1, 0.5, 0.3])
  with Writer(tmp_path, keep=1, keep_every=0) as writer:
    best = Best("", tmp_path, writer, [{"step": 2, "knn_top1": 0.5}])
    for step in (4, 5):
      writer.save(step, {"cls_token": jnp.ones(3)}, {}, SETTINGS)
      best(step, {"knn_top1": 0.9})
  assert names(tmp_path) == ["2", "5", "best"]
  assert native.locate(tmp_path / "checkpoints" / "best").name == "2"


def test_a_metric_that_no_evaluation_has_is_told_once(tmp_path, caplog):
  with Writer(tmp_path, keep=1, keep_every=0) as writer:
    best = Best("knn_top2", tmp_path, writer)
    for step in (1, 2):
      writer.save(step, {"cls_token": jnp.ones(3)}, {}, SETTINGS)
      best(step, {})
      best(step, {"rankme": 3.0})  # health figures come without an evaluation, too
      best(step, {"general/knn_top1": 0.2})
  told = [line for line in caplog.messages if "evals.best=knn_top2 is no metric" in line]
  assert len(told) == 1 and "general/knn_top1" in told[0]
  assert names(tmp_path) == ["2"]


@pytest.mark.parametrize("content", ["", "{}", "2", '{"step": "two"}'])
def test_a_file_that_names_no_checkpoint_is_one_line(tmp_path, content):
  follow(tmp_path, [0.1])
  path = tmp_path / "checkpoints" / "best"
  path.write_text(content)
  with pytest.raises(FileNotFoundError, match=f"{path} names no checkpoint") as caught:
    native.locate(path)
  assert "\n" not in str(caught.value)


def test_in_a_run_every_evaluated_step_can_be_the_best(quick_config, stand_in, tmp_path,
                                                       monkeypatch):
  """Also one that is no multiple of `checkpoint.every`; and the same after a restart amid it."""
  accuracies = {2: 0.2, 4: 0.7, 6: 0.4, 8: 0.5}

  class Accuracies:
    def __init__(self, *_, **__):
      pass

    def __call__(self, step, state, metrics):
      if step in accuracies:
        metrics["knn_top1"] = accuracies[step]

    def close(self):
      pass

  monkeypatch.setattr("dinov3_jax.train.watching.Evaluation", Accuracies)
  monkeypatch.setattr("dinov3_jax.train.prepare.open_held_out",
                      lambda config: open_source(config.data.source, "all"))
  quick_config.update_from_flattened_dict({
    "evals.every": 2, "evals.best": "knn_top1", "evals.image_size": 16, "evals.picture_size": 16,
    "checkpoint.every": 5, "checkpoint.keep": 1, "train.steps": 6})
  loop.train(quick_config, tmp_path)
  assert names(tmp_path) == ["4", "6", "best"]
  quick_config.train.steps = 8
  loop.train(quick_config, tmp_path)
  assert names(tmp_path) == ["4", "8", "best"]
