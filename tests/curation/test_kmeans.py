import chex
import numpy as np
import pytest

from dinov3_jax.curation import kmeans
from dinov3_jax.curation.nearest import place_centroids
from dinov3_jax.curation.rows import ArrayPoints, place


@pytest.mark.parametrize("suffix", ["", "_f32"])
def test_every_iteration_agrees_with_the_recording(record, inputs, mesh, suffix):
  g = record("lloyd")
  points = ArrayPoints(inputs.POINTS, mesh)
  expected = g["centroids" + suffix]
  for i, assigned in enumerate(g["assign" + suffix]):
    centroids = kmeans.lloyd(points, g["init"], i)
    chex.assert_trees_all_close(centroids, expected[i].astype(np.float32), atol=1e-5)
    np.testing.assert_array_equal(kmeans.assign(points, centroids).cluster, assigned)


def test_recorded_cosines(record, inputs, mesh):
  """Of rows of length 1, by 2 - 2 x.c, with means that are not brought to length 1."""
  g = record("lloyd")
  x = inputs.POINTS.astype(np.float64)
  points = ArrayPoints((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), mesh)
  start = points.take(g["init_indices"])
  for i, assigned in enumerate(g["cos_assign"]):
    centroids = kmeans.lloyd(points, start, i, cosine=True)
    chex.assert_trees_all_close(centroids, g["cos_centroids"][i].astype(np.float32), atol=1e-5)
    found = kmeans.assign(points, centroids, cosine=True)
    np.testing.assert_array_equal(found.cluster, assigned)
    x = points.take(np.arange(points.rows))
    chex.assert_trees_all_close(found.distance, 2 - 2 * (x * centroids[assigned]).sum(1), atol=1e-5)


def test_chunks_and_a_restart_do_not_change_the_result(inputs, single):
  whole = ArrayPoints(inputs.POOL, single)

  class Parts(ArrayPoints):
    def chunks(self, start=0):
      for i in range(start * 700, len(inputs.POOL), 700):
        yield place(inputs.POOL[i:i + 700], single, i, 700)

    def sizes(self):
      return [700, 700, 600]

  init = inputs.POOL[:50]
  expected = kmeans.lloyd(whole, init, 6)
  parts = Parts(inputs.POOL, single)
  seen = []
  chex.assert_trees_all_close(
    kmeans.lloyd(parts, init, 6, watch=lambda i, get: seen.append((i, get()))), expected, atol=1e-5)
  assert [i for i, _ in seen] == [1, 2, 3, 4, 5, 6]
  # Going on from the middle is the same arithmetic, to the bit.
  np.testing.assert_array_equal(kmeans.lloyd(parts, seen[2][1], 6, done=3), seen[-1][1])
  np.testing.assert_array_equal(kmeans.assign(parts, expected).cluster,
                                kmeans.assign(whole, expected).cluster)
  resumed = list(kmeans.assign_chunks(parts, expected, 1))
  assert [len(part.cluster) for part in resumed] == [700, 600]
  # Seeds of a set in parts are those of the set.
  np.testing.assert_array_equal(*(kmeans.seeds(p, 20, np.random.default_rng(3))
                                  for p in (whole, parts)))


def test_iterations_end_when_nothing_changes(inputs, single):
  points = ArrayPoints(inputs.POINTS, single)
  init = inputs.POINTS[:4]
  counts = []
  last = kmeans.lloyd(points, init, 1000, watch=lambda i, get: counts.append(i))
  assert 1 < counts[-1] < 100
  np.testing.assert_array_equal(kmeans.lloyd(points, last, 10), last)


def test_potential(record, inputs, single):
  g = record("hierarchy")
  points = ArrayPoints(inputs.POOL, single)
  assert kmeans.potential(points, g["assign_1"], len(g["centroids_1"])) == pytest.approx(
    float(g["potential_1"]), rel=1e-6)


def test_edges(inputs, mesh):
  """More clusters than rows, one cluster, rows that are not finite, equal rows."""
  rng = np.random.default_rng(0)
  x = inputs.POINTS[:9].copy()
  x[4, 2], x[7, 0] = np.nan, np.inf
  points = ArrayPoints(x, mesh)
  chosen = kmeans.seeds(points, 20, rng)
  assert sorted(chosen) == [0, 1, 2, 3, 5, 6, 8]
  result = kmeans.assign(points, kmeans.lloyd(points, x[chosen], 3))
  assert result.cluster[[4, 7]].tolist() == [-1, -1]
  np.testing.assert_array_equal(chosen[result.cluster[[0, 1, 2, 3, 5, 6, 8]]],
                                [0, 1, 2, 3, 5, 6, 8])
  one = kmeans.lloyd(points, x[:1], 2)
  chex.assert_trees_all_close(one[0], x[np.isfinite(x).all(1)].mean(0), atol=1e-5)
  same = ArrayPoints(np.ones((300, 4), np.float32), mesh)
  chosen = kmeans.seeds(same, 3, rng)
  assert len(chosen) == 3 and (chosen >= 0).all() and (chosen < 300).all()
  moved = kmeans.lloyd(same, np.ones((3, 4)), 2)
  np.testing.assert_array_equal(moved, np.ones((3, 4)))
  assert (kmeans.assign(same, moved).cluster == 0).all()
  with pytest.raises(ValueError, match="none of the 3 rows of features is finite"):
    kmeans.seeds(ArrayPoints(np.full((3, 2), np.nan), mesh), 1, rng)
  with pytest.raises(ValueError, match="must be positive, not 0"):
    kmeans.seeds(points, 0, rng)


def test_seeds_of_a_sample(inputs, single):
  points = ArrayPoints(inputs.POOL, single)
  chosen = kmeans.seeds(points, 10, np.random.default_rng(0), limit=100)
  assert len(set(chosen.tolist())) == 10
  few = np.sort(np.random.default_rng(0).choice(2000, 100, replace=False))
  assert set(chosen.tolist()) <= set(few.tolist())


def test_the_best_of_several_runs(inputs, single):
  points = ArrayPoints(inputs.POOL, single)
  left = []
  for restarts in (1, 6):
    centroids, assigned = kmeans.fit(points, 30, iterations=5, restarts=restarts)
    np.testing.assert_array_equal(kmeans.assign(points, centroids).cluster, assigned.cluster)
    left.append(kmeans.potential(points, assigned.cluster, 30))
  assert left[1] < left[0]
  assert len(kmeans.fit(ArrayPoints(inputs.POOL[:4], single), 9)[0]) == 4
  with pytest.raises(ValueError, match="restarts must be positive"):
    kmeans.fit(points, 3, restarts=0)


def test_an_iteration_compiled_ahead_of_time(inputs, mesh):
  compiled, (rows, k) = kmeans.compile_iteration(600, 8, 10, mesh, np.float32)
  chunk = place(inputs.POINTS, mesh)
  placed = place_centroids(inputs.POINTS[:10], mesh)
  assert (rows, k) == (len(chunk.x), len(placed.c))
  moved = compiled(chunk.x, chunk.valid, placed.c)
  expected = kmeans.lloyd(ArrayPoints(inputs.POINTS, mesh), inputs.POINTS[:10], 1)
  chex.assert_trees_all_close(np.asarray(moved)[:10], expected, atol=1e-5)
