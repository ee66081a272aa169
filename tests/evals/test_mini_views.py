"""Small data sets with true depth."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import mini_views
from dinov3_jax.evals.tasks import nyu, stereo


def test_a_ball_is_round(mini_data):
  pose = dict(camera=dict(q=[1, 0, 0, 0], t=[0, 0, 300.0], focal_length=64.0))
  depth, points = mini_views.ball(pose, 64, 64)
  assert depth[32, 32] == pytest.approx(240, abs=0.1) and depth[0, 0] == 0
  np.testing.assert_allclose(np.linalg.norm(points[depth > 0], axis=-1), 60, atol=1e-6)


def test_both_views_show_the_same_paint(shapes):
  rng = np.random.default_rng(0)
  paint = mini_views.texture(shapes[0], rng)
  points = 60 * np.array([[0, 0, -1], [0, 1, 0], [0.5, 0, -0.866]])
  assert paint(points).shape == (3, 3) and (paint(points) == paint(points)).all()
  assert len(np.unique(paint(points), axis=0)) > 1


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None,
                    reason="needs the photographs of `pip install scikit-image`")
def test_the_stereo_pair(tmp_path, session_of):
  mini_views.middlebury(tmp_path / "pair", None, None)
  points, there, _ = stereo.scene_points(tmp_path / "pair/Motorcycle", 62, 92, 8)
  assert 2 < points[there][:, 2].min() < points[there][:, 2].max() < 5.1 and there.mean() > 0.9
  mini_views.nyu(tmp_path / "nyu", None, None)
  train = nyu.read_list(session_of(tmp_path / "nyu"), "nyu_train.txt")
  test = nyu.read_list(session_of(tmp_path / "nyu"), "nyu_test.txt")
  assert len(train) == 6 and len(test) == 5
  assert np.asarray(Image.open(train[0][1])).max() < 5100  # millimetres
