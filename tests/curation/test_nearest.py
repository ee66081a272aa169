import chex
import jax.numpy as jnp
import numpy as np

from dinov3_jax.curation import nearest as module
from dinov3_jax.curation.nearest import nearest, place_centroids, sums
from dinov3_jax.curation.rows import place


def test_ties_go_to_the_lowest_index(record, mesh):
  """The recorded lattice, and the same with all centroids twice, in blocks of one and two."""
  g = record("lloyd")
  side = int(len(g["lattice_assign"]) ** 0.5)
  grid = np.stack(np.meshgrid(range(side), range(side), indexing="ij"), -1).reshape(-1, 2)
  chunk = place(grid.astype(np.float32), mesh)
  for init in (g["lattice_init"], np.concatenate([g["lattice_init"]] * 2)):
    found = nearest(chunk, place_centroids(init, mesh), mesh)
    np.testing.assert_array_equal(found.cluster[:len(grid)], g["lattice_assign"])


def test_blocks_and_devices_do_not_matter(mesh, monkeypatch):
  rng = np.random.default_rng(0)
  x, c = rng.normal(size=(1000, 12)), rng.normal(size=(77, 12))
  exact = np.square(x[:, None] - c).sum(-1)
  for block in (8, 40, 4096):
    monkeypatch.setattr(module, "CENTROID_BLOCK", block)
    module._nearest.cache_clear()
    found = nearest(place(x, mesh), place_centroids(c, mesh), mesh)
    np.testing.assert_array_equal(found.cluster[:1000], exact.argmin(1))
    assert (np.asarray(found.cluster[1000:]) == -1).all()
    chex.assert_trees_all_close(found.distance[:1000], exact.min(1).astype(np.float32), rtol=1e-5)
  module._nearest.cache_clear()


def test_distances_are_precise_far_from_the_origin(single):
  """Of points at 1,000 the distance of 0.01 is right, though squares of 1,000 are summed."""
  c = np.full((1, 4), 1000.0)
  x = c + np.array([0.25, 0, 0, 0])
  found = nearest(place(x, single), place_centroids(c, single), single)
  assert float(found.distance[0]) == 0.0625


def test_half_precision_is_compared_in_float32(mesh):
  rng = np.random.default_rng(1)
  x, c = rng.normal(size=(300, 16)).astype(np.float16), rng.normal(size=(9, 16))
  chunk = place(x, mesh)
  assert chunk.x.dtype == jnp.float16
  wide = place(x.astype(np.float32), mesh)
  for a, b in zip(*(nearest(chunk, place_centroids(c, mesh), mesh) for chunk in (chunk, wide))):
    np.testing.assert_array_equal(a, b)


def test_sums(mesh, monkeypatch):
  rng = np.random.default_rng(2)
  x = rng.normal(size=(700, 200)).astype(np.float32)
  cluster = rng.integers(-1, 13, 700)
  chunk = place(x, mesh)
  marks = np.full(len(chunk.x), -1, np.int32)
  marks[:700] = cluster
  for limit in (2**32, 1):  # all columns at once, and 128 at a time
    monkeypatch.setattr(module, "SUM_BYTES", limit)
    module._sums.cache_clear()
    found = sums(chunk, jnp.asarray(marks), 13, mesh)
    for i in range(13):
      np.testing.assert_allclose(found.total[i], x[cluster == i].sum(0), atol=1e-4)
    np.testing.assert_array_equal(found.count[:13], np.bincount(cluster[cluster >= 0]))
  module._sums.cache_clear()


def test_centroids_fill_whole_blocks(monkeypatch):
  for k, devices in [(1, 1), (5, 8), (1000, 1), (2049, 1), (8_000_000, 256), (100_000, 7)]:
    own = module.padded_centroids(k, devices) // devices
    blocks = -(-own // module.CENTROID_BLOCK)
    assert own * devices >= k and own % blocks == 0
    assert own * devices <= k + devices * 8 * blocks
