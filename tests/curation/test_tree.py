import numpy as np
import pytest

from dinov3_jax.curation.tree import Level, Tree, entropy, evenness, make_level


def test_members_are_sorted_by_distance_then_number():
  level = make_level(np.array([2, 0, 2, -1, 0, 2]), np.array([0.5, 0.2, 0.5, 0, 0.1, 0.4]), 4)
  assert level.ids.tolist() == [4, 1, 5, 0, 2]
  assert level.sizes.tolist() == [2, 0, 3, 0]
  assert level.members(2).tolist() == [5, 0, 2] and not len(level.members(1))
  assert level.closest(1).tolist() == [4, 5] and level.closest(2).tolist() == [4, 1, 5, 0]


def test_rounding_does_not_order_members():
  eps = 1e-6
  distance = np.array([0.5 + eps, 0.5, 0.6, 0.5, 0.1 + eps / 8, 0.1, 0.7, 0.0, 0.0])
  level = make_level(np.array([0, 0, 1, 1, 2, 2, 2, 3, 3]), distance, 4)
  assert level.ids.tolist() == [0, 1, 3, 2, 4, 5, 6, 7, 8]
  # A dense cluster stays in order, but for rounding.
  rng = np.random.default_rng(0)
  distance = np.sort(rng.uniform(1, 1.01, 5000))[::-1]
  level = make_level(np.zeros(5000, int), distance, 1)
  found = distance[level.ids]
  assert (found - np.sort(distance)).max() < 2e-5 and not (level.ids == range(4999, -1, -1)).all()


def test_recorded_tree(record):
  """Flat clusters and sizes of three levels from what each level was assigned."""
  g, sampling = record("resampling"), record("sampling")
  levels = []
  for i in (1, 2, 3):
    assigned = g[f"assign_{i}"].astype(int)
    k = len(g[f"centroids_{i}_0"])
    levels.append(make_level(assigned, np.zeros(len(assigned)), k))
  tree = Tree(levels)
  n = len(g["assign_1"])
  for i in (2, 3):
    np.testing.assert_array_equal(tree.cluster_of_rows(i - 1, n), g[f"flat_{i}"])
    np.testing.assert_array_equal(tree.counts(i - 1, np.arange(n)), tree.flat_sizes[i - 1])
  # The recording has the sizes in the order of its tree.
  assert sorted(tree.flat_sizes[2]) == sorted(sampling["flat_sizes_3"])


def test_empty_clusters_at_any_level():
  lowest = make_level(np.array([0, 0, 3, -1]), np.zeros(4), 4)
  above = make_level(np.array([1, 1, 0, 1]), np.zeros(4), 3)
  tree = Tree([lowest, above])
  assert [sizes.tolist() for sizes in tree.flat_sizes] == [[2, 0, 0, 1], [0, 3, 0]]
  assert tree.cluster_of_rows(1, 5).tolist() == [1, 1, 1, -1, -1]
  assert tree.counts(0, np.array([0, 0, 2, 3])).tolist() == [2, 0, 0, 1]


def test_levels_that_do_not_fit():
  with pytest.raises(ValueError, match="at least one level"):
    Tree([])
  lowest = make_level(np.array([0, 1, 2]), np.zeros(3), 3)
  with pytest.raises(ValueError, match="level 2 must have each of the 3 clusters"):
    Tree([lowest, Level(np.array([0, 1]), np.array([0, 2]))])


def test_entropy():
  assert entropy([5, 5, 5, 5]) == pytest.approx(2) and evenness([5, 5, 5, 5]) == pytest.approx(1)
  assert entropy([7, 0, 0, 0]) == 0 and evenness([7, 0, 0, 0]) == pytest.approx(1 / 4)
  assert entropy([3, 3, 0, 0]) == pytest.approx(1) and evenness([3, 3, 0, 0]) == pytest.approx(0.5)
  assert entropy([0, 0]) == 0
