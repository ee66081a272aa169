"""Near duplicates: pairs of a high cosine, and what they connect (DINOv2, appendix A).

Two images are joined where one is among the nearest neighbours of the other and their cosine is
above a threshold. Of everything that is connected in this way, one image is kept. Against the
images of an evaluation, all is dropped that is connected with one of them.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dinov3_jax.curation.disk import Folder
from dinov3_jax.curation.neighbours import Found, cell_neighbours, nearest_cells, neighbours
from dinov3_jax.curation.progress import Report, silent
from dinov3_jax.curation.rows import Points
from dinov3_jax.curation.tree import Level

SLAB = 2**16  # rows whose pairs are kept on disk together
NEIGHBOURS = 64
THRESHOLD = 0.6
AGAINST_THRESHOLD = 0.45


@dataclasses.dataclass(frozen=True)
class Cells:
  """Where to look for neighbours, in place of everywhere.

  Attributes:
    centroids: float32 [k, d].
    level: the rows in the clusters of these centroids.
    probes: clusters to look into, the nearest ones to each query.
  """

  centroids: np.ndarray
  level: Level
  probes: int = 8


def search(queries: np.ndarray, points: Points, k: int, cells: Cells | None = None,
           recall: float = 1.0) -> Found:
  """The nearest rows of queries, of all rows or of those in cells."""
  if cells is None:
    return neighbours(queries, points, k, recall=recall)
  probes = nearest_cells(queries, cells.centroids, cells.probes)
  return cell_neighbours(queries, probes, points, cells.level, k)


def pairs(queries: Points, points: Points, threshold: float, *, k: int = NEIGHBOURS,
          cells: Cells | None = None, recall: float = 1.0, folder: Folder | None = None,
          name: str = "pairs", report: Report = silent) -> np.ndarray:
  """Queries and their neighbours of a higher cosine than `threshold`.

  Args:
    queries: all of their rows are.
    points: where to look; may be the queries themselves.
    threshold: between -1 and 1.
    k: neighbours of each query at most.
    cells, recall: where and how to look.
    folder, name: keep what is done, slab by slab.
    report: of progress.

  Returns:
    [n] with the fields query, row (int64) and similarity (float32), in the order of the queries. A
    query that is looked for among itself is no pair.
  """
  if not -1 <= threshold <= 1:
    raise ValueError(f"a threshold of cosines lies between -1 and 1, not at {threshold}")
  folder = folder or Folder(None)
  own = queries is points
  parts = []

  def of_slab(begin: int, end: int) -> np.ndarray:
    found = search(queries.take(np.arange(begin, end)), points, k + own, cells, recall)
    query = np.arange(begin, end)[:, None]
    good = (found.similarity > threshold) & (found.row >= 0)
    if own:
      good &= found.row != query
    out = np.empty(int(good.sum()), PAIR)
    out["query"] = np.broadcast_to(query, good.shape)[good]
    out["row"], out["similarity"] = found.row[good], found.similarity[good]
    return out

  for i, (begin, end) in enumerate(_slabs(queries.rows)):
    parts.append(folder.array(f"{name}/{i:05}", lambda begin=begin, end=end: of_slab(begin, end)))
    report(end / queries.rows, f"{name}: {end:,} of {queries.rows:,} rows")
  return np.concatenate(parts) if parts else np.zeros(0, PAIR)


PAIR = np.dtype([("query", np.int64), ("row", np.int64), ("similarity", np.float32)])


def _slabs(rows: int) -> Iterator[tuple[int, int]]:
  return ((i, min(i + SLAB, rows)) for i in range(0, rows, SLAB))


def components(rows: int, joined: np.ndarray) -> np.ndarray:
  """What is connected: for each row the lowest row that it is connected with, int64 [rows].

  Args:
    rows: how many.
    joined: int [n, 2], pairs of rows.
  """
  joined = np.asarray(joined).reshape(-1, 2)
  graph = coo_array((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), (rows, rows))
  _, label = connected_components(graph, directed=False)
  _, first = np.unique(label, return_index=True)
  return first[label].astype(np.int64)


def deduplicate(points: Points, threshold: float = THRESHOLD, *, report: Report = silent,
                **settings) -> tuple[np.ndarray, np.ndarray]:
  """One row of everything that is connected by near duplicates, the lowest.

  Args:
    points: the rows.
    threshold: of the cosine; DINOv2's is for SSCD's descriptors.
    report: of progress.
    **settings: as of `pairs`.

  Returns:
    For each row, the row that is kept for it, which may be itself: int64 [rows]; and the pairs.
  """
  found = pairs(points, points, threshold, report=report, **settings)
  return components(points.rows, np.stack([found["query"], found["row"]], 1)), found


@dataclasses.dataclass(frozen=True)
class Leaks:
  """Rows that are connected with images of an evaluation.

  Attributes:
    rows: int64 [n], sorted.
    reference: int64 [n], a row of the evaluation that each is connected with: the nearest that it
      is joined with, or one that its component is joined with.
    similarity: float32 [n], the cosine of the two; NaN where they are connected through others.
  """

  rows: np.ndarray
  reference: np.ndarray
  similarity: np.ndarray


def leaks(points: Points, reference: Points, threshold: float = AGAINST_THRESHOLD, *,
          folder: Folder | None = None, report: Report = silent,
          joined: Callable[[], np.ndarray] | None = None, **settings) -> Leaks:
  """Rows that resemble, directly or through others, an image of an evaluation.

  Args:
    points: the rows.
    reference: features of the evaluation's images, all of its splits.
    threshold: of the cosine.
    folder, report: see `pairs`.
    joined: gives the pairs among the rows by the same threshold where they are known.
    **settings: as of `pairs`, for the pairs among the rows.
  """
  direct = pairs(points, reference, threshold, k=1, folder=folder, name="against", report=report)
  inside = joined() if joined else pairs(points, points, threshold, folder=folder, name="among",
                                         report=report, **settings)
  of = components(points.rows, np.stack([inside["query"], inside["row"]], 1))
  source = np.full(points.rows, -1)
  source[of[direct["query"]][::-1]] = direct["row"][::-1]  # the first pair of a component counts
  reached = source[of]
  similarity = np.full(points.rows, np.nan, np.float32)
  reached[direct["query"]], similarity[direct["query"]] = direct["row"], direct["similarity"]
  rows = np.flatnonzero(reached >= 0)
  return Leaks(rows, reached[rows], similarity[rows])
