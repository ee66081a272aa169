"""Pickles that run nothing."""

import pickle

import numpy as np
import pytest

from dinov3_jax.evals import plain_pickle


def test_arrays_and_plain_values(tmp_path):
  for protocol in (2, 5):
    (tmp_path / "a").write_bytes(pickle.dumps({"x": np.arange(3), "y": [1.5, "b"]}, protocol))
    found = plain_pickle.load(tmp_path / "a")
    np.testing.assert_array_equal(found["x"], [0, 1, 2])
    assert found["y"] == [1.5, "b"]


def test_code_is_not_run(tmp_path):
  class Bad:
    def __reduce__(self):
      return print, ("run",)

  for data in (pickle.dumps(Bad()), b"", b"no pickle"):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match="a is no plain pickle"):
      plain_pickle.load(tmp_path / "a")
