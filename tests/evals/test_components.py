"""Shared components and the foreground against recorded figures."""

import numpy as np
import pytest

from dinov3_jax.evals import components


@pytest.fixture(scope="module")
def record(golden):
  return golden("evals/pca_picture")


def test_foreground(record):
  np.testing.assert_allclose(components.smooth(record["score"]), record["median"], atol=1e-6)
  np.testing.assert_array_equal(components.foreground(record["score"]), record["foreground"])


def test_pca(record):
  mask = record["foreground"]
  features = record["features"].reshape(*mask.shape, -1)
  found = components.fit(features[mask])
  np.testing.assert_allclose(found.variance, record["explained_variance"], rtol=1e-4)
  np.testing.assert_allclose(found.mean, record["mean"], atol=1e-4)
  projected = found.project(features)
  signs = np.sign((projected * record["projected"]).sum((0, 1)))  # those of axes are arbitrary
  np.testing.assert_allclose(projected * signs, record["projected"], atol=2e-4)
  rgb = np.moveaxis(record["rgb"], 0, -1)
  ours = found.rgb(features, mask)
  turned = np.where(mask[..., None] & (signs < 0), 1 - ours, ours)
  np.testing.assert_allclose(turned, rgb, atol=2e-4)


def test_features_may_come_in_parts():
  x = np.random.default_rng(0).standard_normal((50, 8)) + 100
  moments = components.Moments(8)
  for part in np.split(x, [3, 4, 20]):
    moments.add(part)
  found, expected = moments.components(3), components.fit(x)
  for name in ("mean", "axes", "variance"):
    np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9)
  np.testing.assert_allclose(moments.variance, x.var(0, ddof=1).sum(), rtol=1e-12)


def test_components_after_the_first_ones():
  x = np.random.default_rng(0).standard_normal((50, 4)) * [8, 4, 2, 1]
  np.testing.assert_allclose(components.fit(x, 2, skip=1).axes, components.fit(x, 3).axes[1:])


def test_patches_of_alpha(record):
  shares = components.patch_shares(record["alpha"][:96, :128])
  np.testing.assert_allclose(shares, record["patch_fraction_of_first_96x128"], atol=1e-6)
  assert components.patch_shares(record["alpha"]).shape == (6, 8)


def test_sizes(record):
  for width, height, *expected in record["resize_768_patch16"]:
    assert components.picture_size(height, width) == tuple(expected)


def test_bad_input():
  with pytest.raises(ValueError, match="3 components need more"):
    components.fit(np.ones((3, 8)))
  with pytest.raises(ValueError, match="all finite"):
    components.fit(np.full((9, 8), np.nan))
  with pytest.raises(ValueError, match=r"features \[N, D\] .* not \(9, 8, 3\)"):
    components.fit(np.ones((9, 8, 3)))
