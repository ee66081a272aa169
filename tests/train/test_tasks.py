"""Tasks on the teacher beside training."""

import logging

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import mini
from dinov3_jax.train import sharding, tasks
from dinov3_jax.train.settings import check_settings
from dinov3_jax.train.state import init_state
from dinov3_jax.train.tasks import Tasks
from tests.evals.conftest import Shapes


@pytest.fixture
def config(tiny_config):
  tiny_config.evals.update(every=10, image_size=16)
  return tiny_config


@pytest.fixture
def colours(tmp_path):
  rng = np.random.default_rng(0)
  for split, count in (("train", 6), ("val", 3)):
    for channel, name in ((0, "red"), (2, "blue")):
      (tmp_path / "data" / split / name).mkdir(parents=True)
      for i in range(count):
        image = rng.integers(0, 60, (24, 24, 3), np.uint8)
        image[..., channel] += 180
        Image.fromarray(image).save(tmp_path / "data" / split / name / f"{i}.png")
  return tmp_path / "data"


def make(config, tmp_path, *entries, **settings):
  config.evals.update(tasks=entries, **settings)
  return Tasks(config, tmp_path / "run", sharding.make_mesh(config))


def test_a_task_on_its_own_data(config, colours, tmp_path):
  watch = make(config, tmp_path, f"knn={colours}", task_limit=4)
  metrics = {"loss": 1.0}
  state = init_state(config)
  watch(7, state, metrics)
  assert metrics == {"loss": 1.0}
  watch(10, state, metrics)
  assert metrics["tasks/knn/top-1, k = 10"] == 100.0 and metrics["loss"] == 1.0
  watch.close()


def test_small_data_and_pictures(config, tmp_path, monkeypatch, caplog):
  """A task that fails is told of, and the next one has its turn."""
  write = mini.write
  monkeypatch.setattr(mini, "write", lambda root, **how: write(root, drawings=Shapes(), **how))
  monkeypatch.setitem(mini.SETS, "DAVIS", (lambda out, drawings, rng: mini.mini_videos.davis(
      out, drawings, rng, videos=1, frames=4), ""))
  plans = [plan for plan in tasks.PLANS if plan.data == "DAVIS"]
  monkeypatch.setattr(tasks, "PLANS", plans)
  config.evals.update(tasks=(f"knn={tmp_path}", "tracking"))
  watch, metrics = Tasks(config, tmp_path / "run", sharding.make_mesh(config)), {}
  with caplog.at_level(logging.WARNING):
    watch(config.train.steps, init_state(config), metrics)
  assert 0 < metrics["tasks/tracking/J&F"] <= 100
  assert "the task knn failed" in caplog.text and "has no train" in caplog.text
  (film,) = (tmp_path / "run/pictures/tasks/tracking").rglob("*.gif")
  assert film.parent.name == f"step_{config.train.steps:07d}"
  watch.close()


def test_settings_are_checked_before_the_run(config, tmp_path):
  for entry, said in (("nearest", "evals.tasks has 'nearest': take some of knn"),
                      ("knn=/nowhere", "there is no folder /nowhere"),
                      ("zeroshot", "evals.tasks has 'zeroshot' without its data: write")):
    with pytest.raises(ValueError, match=said):
      tasks.split(entry)
    config.evals.tasks = (entry,)
    with pytest.raises(ValueError, match=said):
      check_settings(config)
  config.evals.tasks = ("knn", f"met={tmp_path}")
  check_settings(config)
  assert tasks.split(f"met={tmp_path}") == ("met", str(tmp_path))
