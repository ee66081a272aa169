import numpy as np
import pytest

from dinov3_jax.curation import kmeans, neighbours
from dinov3_jax.curation.rows import ArrayPoints
from dinov3_jax.curation.tree import make_level


def by_hand(queries, x, k):
  queries, x = (a.astype("f8") / np.linalg.norm(a.astype("f8"), axis=1)[:, None]
                for a in (queries, x))
  cosine = queries @ x.T
  order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
  return np.take_along_axis(cosine, order, 1), order


@pytest.fixture(scope="module")
def problem():
  rng = np.random.default_rng(0)
  return rng.normal(size=(90, 8)).astype("f4"), rng.normal(size=(1500, 8)).astype("f4")


@pytest.mark.parametrize("recall", [1.0, 0.95])
def test_agrees_with_a_search_by_hand(problem, mesh, monkeypatch, recall):
  """In several blocks of queries and rows; an approximate search is exact on a CPU."""
  queries, x = problem
  monkeypatch.setattr(neighbours, "QUERIES", 64)
  found = neighbours.neighbours(queries, ArrayPoints(x, mesh), 7, recall=recall)
  similarity, row = by_hand(queries, x, 7)
  np.testing.assert_array_equal(found.row, row)
  np.testing.assert_allclose(found.similarity, similarity, atol=1e-6)


def test_ties_go_to_the_lowest_row(mesh):
  x = np.tile(np.eye(4, dtype="f4"), (500, 1))
  found = neighbours.neighbours(np.eye(4)[[2]], ArrayPoints(x, mesh), 6)
  assert found.row.tolist() == [[2, 6, 10, 14, 18, 22]]
  assert found.similarity.tolist() == [[1] * 6]


def test_edges(mesh):
  """Fewer rows than k, rows and queries that are not finite, zeros."""
  x = np.array([[1, 0], [np.nan, 1], [0, 0], [0, 2]], "f4")
  queries = np.array([[3, 0], [np.inf, 0]], "f4")
  found = neighbours.neighbours(queries, ArrayPoints(x, mesh), 5)
  assert found.row.tolist() == [[0, 2, 3, -1, -1], [-1] * 5]
  assert found.similarity[0, :3].tolist() == [1, 0, 0]
  assert np.isneginf(found.similarity[:, 3:]).all() and np.isneginf(found.similarity[1]).all()
  for change, message in [(dict(k=0), "must be positive"), (dict(recall=0), "recall must be above"),
                          (dict(queries=np.ones((1, 3))), "features of one model")]:
    with pytest.raises(ValueError, match=message):
      neighbours.neighbours(**dict(queries=queries, points=ArrayPoints(x, mesh), k=1) | change)


def test_cells(problem, mesh, monkeypatch):
  """All cells give what all rows give; few give what their rows give."""
  queries, x = problem
  monkeypatch.setattr(neighbours, "QUERIES", 64)
  monkeypatch.setattr(neighbours, "BATCH_BYTES", 2**16)
  points = ArrayPoints(x, mesh)
  centroids = x[:12]
  assigned = kmeans.assign(points, centroids)
  level = make_level(assigned.cluster, assigned.distance, 13)  # the last one is empty
  probes = neighbours.nearest_cells(queries, centroids, 99)
  assert probes.shape == (90, 12)
  squared = np.square(queries[:, None] - centroids).sum(-1)
  np.testing.assert_array_equal(probes, squared.argsort(1))
  found = neighbours.cell_neighbours(queries, probes, points, level, 5)
  everywhere = neighbours.neighbours(queries, points, 5)
  np.testing.assert_array_equal(found.row, everywhere.row)
  np.testing.assert_allclose(found.similarity, everywhere.similarity, atol=1e-6)

  few = probes[:, :2].copy()
  few[3], few[4] = (-1, 12), 12
  found = neighbours.cell_neighbours(queries, few, points, level, 5)
  assert (found.row[3:5] == -1).all()
  for i in (0, 50, 89):
    inside = np.flatnonzero(np.isin(assigned.cluster, few[i]))
    np.testing.assert_array_equal(found.row[i], inside[by_hand(queries[[i]], x[inside], 5)[1][0]])
  strange = queries.copy()
  strange[1] = np.nan
  assert (neighbours.nearest_cells(strange, centroids, 3)[1] == -1).all()
