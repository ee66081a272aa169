import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov3_jax.evals.rankme import rankme


def test_by_hand():
  # Singular values 3 and 1: p = 3/4, 1/4.
  features = np.diag([3.0, 1.0]) @ np.array([[0.6, 0.8], [-0.8, 0.6]])
  assert rankme(features) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))


@given(st.integers(1, 6), st.integers(6, 9))
@settings(max_examples=20, deadline=None)
def test_equal_directions_count_fully(rank, width):
  rows = np.linalg.qr(np.random.default_rng(rank).standard_normal((width, width)))[0][:rank]
  assert rankme(rows) == pytest.approx(rank)
  assert rankme(np.float32(1e-3 * rows)) == pytest.approx(rank, rel=1e-5)  # whatever the scale
  assert rankme(np.concatenate([rows] * 3)) == pytest.approx(rank)  # and repetition


def test_one_direction_is_collapse():
  assert rankme(np.ones((5, 3))) == pytest.approx(1)
  assert rankme(np.zeros((5, 3))) == 1


def test_no_features_are_an_error():
  with pytest.raises(ValueError, match="at least one image"):
    rankme(np.zeros((0, 3)))
  with pytest.raises(ValueError, match="finite"):
    rankme(np.array([[1.0, np.nan]]))
