import numpy as np
import pytest

from dinov3_jax.curation import kmeans, retrieval
from dinov3_jax.curation.disk import Folder
from dinov3_jax.curation.rows import ArrayPoints
from dinov3_jax.curation.tree import make_level


@pytest.fixture(scope="module")
def pool(inputs, single):
  points = ArrayPoints(inputs.POOL, single)
  centroids = kmeans.lloyd(points, inputs.POOL[:20], 5)
  assigned = kmeans.assign(points, centroids)
  return points, centroids, make_level(assigned.cluster, assigned.distance, 20)


def test_nearest_rows(inputs, pool, single, tmp_path, monkeypatch):
  points, _, _ = pool
  queries = inputs.POOL[100:150] + np.float32(0.001)
  seeds = ArrayPoints(queries, single)
  whole = retrieval.nearest_rows(seeds, points, 4)
  assert whole.shape == (50, 4)
  assert (whole[:, 0] == np.arange(100, 150)).all()
  monkeypatch.setattr(retrieval, "SLAB", 20)
  folder = Folder(tmp_path, {})
  np.testing.assert_array_equal(retrieval.nearest_rows(seeds, points, 4, folder=folder), whole)
  file = tmp_path / "found" / "00001.npy"
  file.write_bytes(file.read_bytes()[:-9])
  np.testing.assert_array_equal(retrieval.nearest_rows(seeds, points, 4, folder=folder), whole)


def test_whole_clusters(inputs, pool, single):
  """Five images of one cluster and three of another: only the first counts."""
  _, centroids, level = pool
  big, small = np.argsort(-level.sizes)[:2]
  rows = np.concatenate([level.members(big)[:5], level.members(small)[:3]])
  seeds = ArrayPoints(inputs.POOL[rows], single)
  find = lambda **settings: retrieval.cluster_rows(seeds, centroids, level, **settings)
  np.testing.assert_array_equal(find(), np.sort(level.members(big)))
  both = find(least=3)
  np.testing.assert_array_equal(both, np.sort(np.concatenate([level.members(c)
                                                              for c in (big, small)])))
  some = find(least=3, per_cluster=7)
  assert len(some) == 14 and set(some) <= set(both)
  np.testing.assert_array_equal(some, find(least=3, per_cluster=7))
  assert set(some) != set(find(least=3, per_cluster=7, seed=1))
  limited = find(least=3, limit=9)
  assert sorted(np.isin(level.members(c), limited).sum() for c in (big, small)) == [4, 5]
  assert not len(find(least=6))
  with pytest.raises(ValueError, match="must be positive, not 0, 10000 and 1000000"):
    find(least=0)
