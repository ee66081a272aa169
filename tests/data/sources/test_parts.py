"""Probabilities of parts and the file that has them; `tests/curation/test_mixture.py` has more."""

import pytest

from dinov3_jax.data.sources.parts import Part, probabilities, read


def test_probabilities():
  parts = [Part("alone", "x", images=5, weight=0.25, homogeneous=True),
           Part("a", "x", images=5, weight=3), Part("b", "x", names=["1"], weight=1)]
  assert probabilities(parts) == [0.25, 0.75, 0.25]


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(ValueError, match="is no mixture"):
    read(tmp_path)
