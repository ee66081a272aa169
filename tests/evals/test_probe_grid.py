"""Probes on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dinov3_jax.evals import probe_grid


@pytest.fixture
def mesh():
  return jax.make_mesh((2, 2), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=jax.devices()[:4])


def test_a_grid_is_filled_up_to_whole_devices(mesh):
  grid = np.arange(12).reshape(6, 2)
  assert probe_grid.spread(grid, None)[0] is grid
  placed, place = probe_grid.spread(grid, mesh)
  np.testing.assert_array_equal(placed, np.concatenate([grid, grid[:2]]))
  assert [x.data.shape for x in place(placed).addressable_shards] == [(2, 2)] * 4
  np.testing.assert_array_equal(probe_grid.gathered(place(placed), 6), grid)


def test_one_by_one(mesh):
  function = lambda own, x: (own["a"] @ x, own["b"].sum())
  rng = np.random.default_rng(0)
  probes = dict(a=rng.standard_normal((8, 3, 4)), b=rng.standard_normal((8, 5)))
  x = rng.standard_normal(4)
  expected = probes["a"] @ x, probes["b"].sum(1)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
               probe_grid.one_by_one(function)(probes, x), expected)
  _, place = probe_grid.spread(probes["b"], mesh)
  found = jax.jit(probe_grid.one_by_one(function, mesh))(jax.tree.map(place, probes), x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_along():
  assert probe_grid.along(jnp.ones(3), jnp.ones((3, 2, 5))).shape == (3, 1, 1)
