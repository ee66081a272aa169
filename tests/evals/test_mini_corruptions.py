"""Corruptions of small images."""

import numpy as np
import pytest

from dinov3_jax.evals import robustness
from dinov3_jax.evals.mini_corruptions import CORRUPTIONS, corrupt


@pytest.fixture(scope="module")
def image():
  y, x = np.mgrid[:48, :64]
  return np.stack([(x // 8 + y // 8) % 2 * 120 + 60, 3 * x, 4 * y], -1).astype(np.uint8)


def test_they_are_those_of_imagenet_c():
  assert set(CORRUPTIONS) == set(robustness.ALEXNET)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_levels_are_ever_stronger(image, name):
  rng = np.random.default_rng(0)
  far = [abs(corrupt(image, name, level, rng).astype(float) - image).mean() for level in (1, 3, 5)]
  assert 0 < far[0] < far[1] < far[2]
  with pytest.raises(ValueError, match="the levels of a corruption are 1 to 5, not 6"):
    corrupt(image, name, 6, rng)
