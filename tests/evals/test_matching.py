"""Matches of features."""

import numpy as np
import pytest

from dinov3_jax.evals import matching


def test_a_shuffle_is_undone(monkeypatch):
  monkeypatch.setattr(matching, "CHUNK", 7)
  x = np.random.default_rng(0).standard_normal((30, 16))
  order = np.random.default_rng(1).permutation(30)
  places, first, second = matching.nearest(x[order] * 3, x)
  np.testing.assert_array_equal(places, order)
  np.testing.assert_allclose(first, 1, atol=1e-6)
  assert (second < first).all()


def test_ratio_and_cosine_choose_differently():
  first, second = np.array([0.99, 0.6, 0.7]), np.array([0.989, 0.1, 0.4])
  assert matching.best(first, second, 1, "ratio").tolist() == [1]
  assert matching.best(first, second, 2, "cosine").tolist() == [0, 2]
  assert len(matching.best(first, second, 10)) == 3


def test_recall():
  assert matching.recall([0.1, 0.2, 0.3, 0.4], 0.3) == 0.5


def test_bad_input():
  with pytest.raises(ValueError, match="two target features or more"):
    matching.nearest(np.ones((2, 3)), np.ones((1, 3)))
  with pytest.raises(ValueError, match='"ratio" or "cosine"'):
    matching.best(np.ones(1), np.ones(1), 1, "distance")
