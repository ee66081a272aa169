"""The table over all tasks on small data."""

import sys

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.evals import mini_table, video_masks
from dinov3_jax.evals.mini_plan import Plan
from dinov3_jax.evals.mini_table import MeanColour, TrueLabels
from dinov3_jax.evals.tasks import tracking


def test_mean_colours_are_those_of_patches():
  images = np.random.default_rng(0).standard_normal((2, 16, 24, 3)).astype(np.float32)
  found = MeanColour(8)(images)
  assert found["patches"].shape == (2, 6, 3)
  np.testing.assert_allclose(found["patches"][1, 4], images[1, 8:, 8:16].mean((0, 1)), atol=1e-6)
  np.testing.assert_allclose(found["cls"], images.mean((1, 2)), atol=1e-6)


def test_true_labels_track_better_than_a_copy(mini_data, tmp_path):
  session = TrueLabels(MeanColour(8), Preprocess(), mini_data / "DAVIS", tmp_path, size=192,
                       limit=1)
  figures = tracking.run(session).figures
  assert figures["J"] > 70 and figures["J&F"] > figures["J&F of the first mask, copied"] + 10
  (labels,) = session.frames([mini_data / "DAVIS/JPEGImages/480p/clip0/00002.jpg"], 192, 256)
  mask = np.asarray(Image.open(mini_data / "DAVIS/Annotations/480p/clip0/00002.png"))
  assert labels.shape == (24, 32, 8) and set(labels.argmax(-1).ravel()) <= set(mask.ravel())
  assert video_masks.VOID not in labels.argmax(-1)


def test_rows(mini_data, session_of, monkeypatch, tmp_path):
  """Models, a baseline that needs no features, and what is done is not done again."""
  session = session_of("DAVIS", limit=1)
  monkeypatch.setattr(mini_table, "sessions", lambda weights, cache: {
    name: session for name in mini_table.COLUMNS[:3]})
  plan = Plan("tracking", "DAVIS", "J&F", 64, baseline="J&F of the first mask, copied")
  monkeypatch.setattr(mini_table, "PLANS", (plan, Plan("knn", "nowhere", "top-1")))
  first, oracle = list(mini_table.rows("W", mini_data))
  assert first[:3] == ["tracking", "DAVIS", "J&F"] and first[3] == first[4] == first[5]
  assert all(0 < float(value) < 100 for value in first[3:])
  assert oracle[2] == "J&F, true labels" and oracle[4:] == ["-"] * 3
  monkeypatch.setattr(Plan, "run", lambda *_: pytest.fail("run again"))
  assert next(mini_table.rows("W", mini_data)) == first


def test_errors_are_one_line(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(sys, "argv", ["mini_table", "--weights", "W", "--data", str(tmp_path / "no")])
  assert mini_table.main() == 1 and "there is no folder" in capsys.readouterr().err
