"""How many directions features fill: RankMe (Garrido et al., 2023, equation 1)."""

import numpy as np


def rankme(features: np.ndarray) -> float:
  """The smooth rank of a matrix of features, a sign of collapse that needs no labels.

    exp(-sum_k p_k log p_k),  p_k = s_k / sum_i s_i

  over the singular values s of the features as they are, uncentred. It is between 1, where all
  features point the same way, and min(N, D): compare it for equally many images only.

  Args:
    features: [N, D], any float dtype.

  Returns:
    A number; 1 for features that are all zero.

  Raises:
    ValueError: there are no features, or some are not finite.
  """
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or not features.size:
    raise ValueError(f"RankMe takes features [N, D] of at least one image, not {features.shape}")
  if not np.isfinite(features).all():
    raise ValueError("RankMe takes finite features: some are infinite or no number")
  values = np.linalg.svd(features, compute_uv=False)
  total = values.sum()
  if not total:
    return 1.0
  p = values[values > 0] / total
  return float(np.exp(-np.sum(p * np.log(p))))
