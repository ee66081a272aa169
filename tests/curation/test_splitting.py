import chex
import numpy as np
import pytest

from dinov3_jax.curation import kmeans, splitting
from dinov3_jax.curation.hierarchy import Settings, hierarchy
from dinov3_jax.curation.rows import ArrayPoints, make_mesh
from dinov3_jax.curation.tree import make_level


def problem(inputs, mesh, k=7):
  points = ArrayPoints(inputs.POOL, mesh)
  centroids = kmeans.lloyd(points, inputs.POOL[:k], 5)
  assigned = kmeans.assign(points, centroids)
  return points, make_level(assigned.cluster, assigned.distance, k)


def test_parts_are_the_k_means_of_each_cluster(inputs, mesh):
  points, level = problem(inputs, mesh)
  found = splitting.split_unit(points, level, (0, 7), 5, seed=0, iterations=50)
  assert found.count.tolist() == [5] * 7 and len(found.centroids) == 35
  for cluster in range(7):
    own = slice(level.offsets[cluster], level.offsets[cluster + 1])
    x = inputs.POOL[level.members(cluster)]
    centroids = found.centroids[5 * cluster:5 * cluster + 5]
    exact = np.square(x[:, None] - centroids).sum(-1)
    np.testing.assert_array_equal(found.part[own], exact.argmin(1) + 5 * cluster)
    chex.assert_trees_all_close(found.distance[own], exact.min(1), atol=1e-4)
    # A fixed point of Lloyd's iteration on the cluster alone.
    chex.assert_trees_all_close(kmeans.lloyd(ArrayPoints(x, mesh), centroids, 1), centroids,
                                atol=1e-4)


def test_units_and_devices_do_not_matter(inputs, monkeypatch):
  eight, one = make_mesh(), make_mesh(make_mesh().devices[:1].tolist())
  points, level = problem(inputs, one)
  whole = splitting.split_unit(points, level, (0, 7), 4, seed=3, iterations=5)
  monkeypatch.setattr(splitting, "UNIT_ROWS", 500)
  spans = list(splitting.units(level))
  assert len(spans) > 2 and [b for _, b in spans[:-1]] == [a for a, _ in spans[1:]]
  assert (spans[0][0], spans[-1][1]) == (0, 7)
  parts = [splitting.split_unit(ArrayPoints(inputs.POOL, eight), level, span, 4, seed=3,
                                iterations=5) for span in spans]
  chex.assert_trees_all_close(np.concatenate([p.centroids for p in parts]), whole.centroids,
                              atol=1e-5)
  np.testing.assert_array_equal(np.concatenate([p.count for p in parts]), whole.count)


def test_more_restarts_leave_less(inputs, single):
  points, level = problem(inputs, single, 1)
  left = [splitting.split_unit(points, level, (0, 1), 30, seed=0, iterations=8, restarts=runs
                               ).distance.sum() for runs in (1, 8)]
  assert left[1] <= left[0]


def test_small_empty_and_large_clusters(inputs, mesh, monkeypatch):
  """Fewer rows than parts, none at all, and more than a fit takes."""
  monkeypatch.setattr(splitting, "FIT_ROWS", 256)
  cluster = np.full(1000, 2)
  cluster[:3] = 0
  points = ArrayPoints(inputs.POOL[:1000], mesh)
  level = make_level(cluster, np.zeros(1000), 3)
  found = splitting.split_unit(points, level, (0, 3), 4, seed=0)
  assert found.count.tolist() == [3, 0, 4] and len(found.part) == 1000
  exact = np.square(inputs.POOL[3:1000, None] - found.centroids[3:]).sum(-1)
  np.testing.assert_array_equal(found.part[3:], exact.argmin(1) + 3)


def test_two_step_level_under_another(inputs, mesh):
  points = ArrayPoints(inputs.POOL, mesh)
  found = hierarchy(points, [Settings(10, parts=6, restarts=2), Settings(5, rounds=2)], seed=2)
  k = len(found[0].centroids)
  assert 50 < k <= 60
  assert np.bincount(found[0].assigned.cluster, minlength=k).min() > 0
  exact = np.square(inputs.POOL - found[0].centroids[found[0].assigned.cluster]).sum(-1)
  chex.assert_trees_all_close(found[0].assigned.distance, exact, atol=1e-4)
  # Close to what clustering at once leaves, at a sixth of the comparisons.
  at_once = hierarchy(points, [Settings(k, rounds=0)], seed=2)[0]
  assert found[0].assigned.distance.sum() == pytest.approx(at_once.assigned.distance.sum(), rel=0.3)
