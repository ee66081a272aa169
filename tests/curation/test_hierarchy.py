import chex
import numpy as np
import pytest

from dinov3_jax.curation import hierarchy as module
from dinov3_jax.curation import kmeans
from dinov3_jax.curation.hierarchy import Settings, hierarchy, tree
from dinov3_jax.curation.rows import ArrayPoints


def levels_of(g):
  return [name for name in g if name.startswith("assign_")]


def test_recorded_hierarchy(record, inputs, mesh):
  g = record("hierarchy")
  count = len(levels_of(g))
  seeder = lambda rows, k, level, step: g[f"seeds_{level}"].astype(int)
  found = hierarchy(ArrayPoints(inputs.POOL, mesh), [
    Settings(len(g[f"centroids_{i + 1}"]), rounds=0) for i in range(count)], seeder=seeder)
  for i, level in enumerate(found, 1):
    np.testing.assert_array_equal(level.assigned.cluster, g[f"assign_{i}"])
    chex.assert_trees_all_close(level.centroids, g[f"centroids_{i}"].astype("f4"), atol=1e-5)
  inputs_of = [inputs.POOL, *(level.centroids for level in found)]
  for i, (x, level) in enumerate(zip(inputs_of, found), 1):
    left = kmeans.potential(ArrayPoints(x, mesh), level.assigned.cluster, len(level.centroids))
    assert left == pytest.approx(float(g[f"potential_{i}"]), rel=1e-5)
  for i in range(2, count + 1):
    np.testing.assert_array_equal(tree(found).cluster_of_rows(i - 1, len(inputs.POOL)),
                                  g[f"flat_{i}"])


def test_recorded_resampling(record, inputs, mesh):
  g = record("resampling")
  keep = [3, 2, 2]
  rounds = max(int(name.split("_")[2]) for name in g if name.startswith("kept"))

  def seeder(rows, k, level, step):
    chosen = g[f"seeds_{level}_{step}"].astype(int)
    if step:  # numbers the recorded sample, which is this project's in another order
      kept = g[f"kept_{level}_{step}"].astype(int)
      np.testing.assert_array_equal(np.sort(kept), rows)
      chosen = kept[chosen]
    return chosen

  found = hierarchy(ArrayPoints(inputs.POOL, mesh), [
    Settings(len(g[f"centroids_{i + 1}_0"]), rounds=rounds, keep=r) for i, r in enumerate(keep)],
    seeder=seeder)
  for i, level in enumerate(found, 1):
    chex.assert_trees_all_close(level.centroids, g[f"centroids_{i}_{rounds}"].astype("f4"),
                                atol=1e-5)
    np.testing.assert_array_equal(level.assigned.cluster, g[f"assign_{i}"])
  # Leaves in the order of the recording: by distance, then by number.
  s = record("sampling")
  lowest = found[0].level
  np.testing.assert_array_equal(lowest.ids, s["leaf_order"])
  np.testing.assert_array_equal(lowest.sizes, s["leaf_sizes"])
  np.testing.assert_array_equal(tree(found).flat_sizes[-1], s["flat_sizes_3"])


def test_resampling_spreads_centroids_out(single):
  """What it is for: of 40 centroids, fewer lie in a blob of nine rows in ten."""
  rng = np.random.default_rng(0)
  x = np.concatenate([0.5 * rng.normal(size=(1800, 3)), rng.uniform(-8, 8, (200, 3))])
  points = ArrayPoints(x.astype(np.float32), single)
  inside = []
  for rounds in (0, 5):
    found = hierarchy(points, [Settings(40, rounds=rounds, iterations=10)])[0]
    inside.append((np.linalg.norm(found.centroids, axis=1) < 1.5).sum())
  assert inside[1] <= inside[0] / 2


def test_edges(inputs, mesh):
  """More clusters than rows, equal sizes, one cluster, empty clusters, rows that are not finite."""
  x = np.repeat(np.arange(8), 4)[:, None] * np.ones((1, 3), np.float32)
  found = hierarchy(ArrayPoints(x, mesh), [Settings(8), Settings(4), Settings(1)], seed=1)
  assert tree(found).flat_sizes[0].tolist() == [4] * 8
  assert tree(found).flat_sizes[2].tolist() == [32]
  x = inputs.POINTS[:6].copy()
  x[3] = np.nan
  found = hierarchy(ArrayPoints(x, mesh), [Settings(10), Settings(10), Settings(2)])
  assert [len(level.centroids) for level in found] == [5, 5, 2]
  assert found[0].assigned.cluster[3] == -1
  assert tree(found).cluster_of_rows(2, 6)[3] == -1 and tree(found).flat_sizes[2].sum() == 5
  # Rows that are all the same leave all clusters but the first without any, at two levels.
  found = hierarchy(ArrayPoints(np.ones((50, 3)), mesh), [Settings(6, 2, 2), Settings(3, 2, 2)])
  assert tree(found).flat_sizes[0].tolist() == [50, 0, 0, 0, 0, 0][:len(found[0].centroids)]
  assert tree(found).flat_sizes[1].tolist() == [50, 0, 0][:len(found[1].centroids)]


def test_default_of_kept_rows(inputs, single):
  """Half the mean cluster, rounded up: 10, 5 and 3 of 20, 10 and 5, as published."""
  step = lambda n, k: module._Step(ArrayPoints(inputs.POOL[:n], single), Settings(k),
                                   module.Folder(None), 1, 0, None, None)
  assert [step(n, k).keep for n, k in [(2000, 100), (1000, 100), (500, 100)]] == [10, 5, 3]
  assert step(200, 100).rounds == 0  # of one row each, the sample would be no other


@pytest.mark.parametrize("levels, message", [
  ([], "at least one number"), ([Settings(3), Settings(5)], "from the most clusters to the fewest"),
  ([Settings(3, parts=2), Settings(7)], "not \\[6, 7\\]")])
def test_bad_levels(inputs, single, levels, message):
  with pytest.raises(ValueError, match=message):
    hierarchy(ArrayPoints(inputs.POINTS, single), levels)


@pytest.mark.parametrize("change, message", [
  (dict(k=0), "k must be positive"), (dict(rounds=-1), "rounds must not be negative"),
  (dict(strategy="far"), "take closest or random")])
def test_bad_settings(change, message):
  with pytest.raises(ValueError, match=message):
    Settings(**dict(k=3) | change)
