"""The hash that images are divided by."""

import numpy as np

from dinov3_jax.data.sources.splits import hash_percent


def test_hash_percent_is_uniform_and_stable():
  values = [hash_percent(f"n{i}.jpg") for i in range(5000)]
  assert np.histogram(values, 10, (0, 100))[0].min() > 400
  assert hash_percent("cat/00.jpg") == 35
