"""Keypoints on SPair-71k as it lies on disk."""

import pytest

from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import keypoints


def test_run(session_of):
  result = keypoints.run(session_of("SPair-71k", size=64))
  assert result.protocol["pairs"] == 24 and set(result.protocol["of"]) == {"boxes", "crosses"}
  assert 0 <= result.figures["recall"] <= 100
  assert keypoints.run(session_of("SPair-71k", size=64)).figures == result.figures


def test_a_limit_is_told(session_of):
  result = keypoints.run(session_of("SPair-71k", size=64, limit=2))
  assert "2 of 24 pairs" in result.differs


def test_layouts(session_of, tmp_path):
  with pytest.raises(LayoutError, match=r"has no PairAnnotation/test"):
    keypoints.run(session_of("DAVIS", size=64))
  (tmp_path / "PairAnnotation/test").mkdir(parents=True)
  with pytest.raises(LayoutError, match=r"has no .json files"):
    keypoints.run(session_of(tmp_path, size=64))
  (tmp_path / "PairAnnotation/test/1.json").write_text("{}")
  with pytest.raises(LayoutError, match=r"1.json is no pair of SPair-71k: 'category'"):
    keypoints.run(session_of(tmp_path, size=64))
