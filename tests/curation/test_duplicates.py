import numpy as np
import pytest

from dinov3_jax.curation import duplicates, kmeans
from dinov3_jax.curation.disk import Folder
from dinov3_jax.curation.rows import ArrayPoints
from dinov3_jax.curation.tree import make_level


def angles(*degrees):
  radians = np.deg2rad(degrees)
  return np.stack([np.cos(radians), np.sin(radians)], 1).astype("f4")


def test_one_of_each_component_is_kept(mesh):
  """0, 8 and 16 degrees are one component though 0 and 16 are too far apart to be a pair."""
  x = angles(0, 90, 8, 200, 16, 95, 300)
  kept, pairs = duplicates.deduplicate(ArrayPoints(x, mesh), np.cos(np.deg2rad(10)))
  assert kept.tolist() == [0, 1, 0, 3, 0, 1, 6]
  assert {tuple(sorted(p)) for p in zip(pairs["query"].tolist(), pairs["row"].tolist())} == {
    (0, 2), (2, 4), (1, 5)}
  np.testing.assert_allclose(pairs["similarity"][0], np.cos(np.deg2rad(8)), atol=1e-6)
  # The threshold itself is no duplicate.
  same = ArrayPoints(angles(0, 0), mesh)
  assert duplicates.deduplicate(same, 1.0)[0].tolist() == [0, 1]


def test_components_agree_with_a_search_by_hand():
  rng = np.random.default_rng(0)
  edges = rng.integers(0, 60, (35, 2))
  expected = np.arange(60)
  for _ in range(60):
    for a, b in edges:
      expected[a] = expected[b] = min(expected[a], expected[b])
  np.testing.assert_array_equal(duplicates.components(60, edges), expected)
  assert duplicates.components(3, np.zeros((0, 2), int)).tolist() == [0, 1, 2]


def test_slabs_cells_and_a_restart(inputs, mesh, tmp_path, monkeypatch):
  x = inputs.POINTS[:300]
  points = ArrayPoints(x, mesh)
  threshold = 0.995
  whole = duplicates.pairs(points, points, threshold)
  assert len(whole) > 50
  monkeypatch.setattr(duplicates, "SLAB", 100)
  folder = Folder(tmp_path, {})
  shares = []
  slabs = duplicates.pairs(points, points, threshold, folder=folder,
                           report=lambda share, text: shares.append(share))
  np.testing.assert_array_equal(whole[["query", "row"]], slabs[["query", "row"]])
  assert shares == [1 / 3, 2 / 3, 1]
  # A slab that is missing is searched again, and no other.
  asked = []
  search = duplicates.search
  monkeypatch.setattr(duplicates, "search",
                      lambda q, *rest: asked.append(len(q)) or search(q, *rest))
  (tmp_path / "pairs" / "00001.npy").unlink()
  again = duplicates.pairs(points, points, threshold, folder=folder)
  assert asked == [100]
  np.testing.assert_array_equal(again, slabs)
  # In cells of a clustering, nearly all are found.
  centroids = kmeans.lloyd(points, x[:10], 5)
  assigned = kmeans.assign(points, centroids)
  cells = duplicates.Cells(centroids, make_level(assigned.cluster, assigned.distance, 10), 2)
  few = duplicates.pairs(points, points, threshold, cells=cells)
  every = set(whole[["query", "row"]].tolist())
  assert set(few[["query", "row"]].tolist()) <= every and len(few) > 0.9 * len(every)


def test_what_resembles_an_evaluation_is_dropped_with_its_component(mesh):
  x, reference = angles(0, 8, 90, 180, 95, 16), angles(300, 92, 22)
  found = duplicates.leaks(ArrayPoints(x, mesh), ArrayPoints(reference, mesh),
                           np.cos(np.deg2rad(10)))
  assert found.rows.tolist() == [0, 1, 2, 4, 5]
  assert found.reference.tolist() == [2, 2, 1, 1, 2]
  expected = np.cos(np.deg2rad([np.nan, np.nan, 2, 3, 6]))
  np.testing.assert_allclose(found.similarity, expected, atol=1e-6)
  none = duplicates.leaks(ArrayPoints(x, mesh), ArrayPoints(angles(250), mesh), 0.99)
  assert not len(none.rows)


def test_bad_threshold(mesh):
  points = ArrayPoints(angles(0, 1), mesh)
  with pytest.raises(ValueError, match="between -1 and 1, not at 45"):
    duplicates.deduplicate(points, 45)
