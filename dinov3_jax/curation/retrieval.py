"""Images that are like those of chosen sets (DINOv2, appendix A)."""

import numpy as np

from dinov3_jax.curation.disk import Folder
from dinov3_jax.curation.duplicates import Cells, search
from dinov3_jax.curation.kmeans import assign
from dinov3_jax.curation.progress import Report, silent
from dinov3_jax.curation.rows import Points
from dinov3_jax.curation.sampling import random_keys, split
from dinov3_jax.curation.tree import Level

SLAB = 2**14  # queries whose neighbours are kept on disk together


def nearest_rows(seeds: Points, points: Points, k: int, *, cells: Cells | None = None,
                 recall: float = 1.0, folder: Folder | None = None, report: Report = silent
                 ) -> np.ndarray:
  """The k nearest rows of each image of a set; DINOv2 takes 4 for large sets, 32 for ImageNet-1k.

  Args:
    seeds: features of the set.
    points: the pool.
    k: for each of the set.
    cells, recall: where and how to look.
    folder: keeps what is done.
    report: of progress.

  Returns:
    int64 [set, k], -1 where there are fewer. A row may be there several times: DINOv2's counts say
    that it weighs as much.
  """
  folder = folder or Folder(None)
  parts = [np.zeros((0, k), np.int64)]
  for i, begin in enumerate(range(0, seeds.rows, SLAB)):
    rows = np.arange(begin, min(begin + SLAB, seeds.rows))
    parts.append(folder.array(f"found/{i:05}", lambda rows=rows: search(
      seeds.take(rows), points, k, cells, recall).row))
    report((rows[-1] + 1) / seeds.rows, f"{rows[-1] + 1:,} of {seeds.rows:,} images of the set")
  return np.concatenate(parts)


def cluster_rows(seeds: Points, centroids: np.ndarray, level: Level, *, least: int = 4,
                 per_cluster: int = 10_000, limit: int = 1_000_000, seed: int = 0) -> np.ndarray:
  """Rows of the clusters that images of a small set are in.

  Args:
    seeds: features of the set.
    centroids: float32 [k, d] of the pool's clusters; DINOv2 has 100,000.
    level: the pool's rows in these clusters.
    least: images of the set that a cluster must be the nearest of.
    per_cluster: random rows of each such cluster at most.
    limit: rows altogether at most; where there are more, clusters give as many, see `sampling`.
    seed: of what is random.

  Returns:
    int64, sorted.

  Raises:
    ValueError: a number that is not positive.
  """
  if min(least, per_cluster, limit) < 1:
    raise ValueError("least, per_cluster and limit must be positive, not "
                     f"{least}, {per_cluster} and {limit}")
  own = assign(seeds, centroids).cluster
  votes = np.bincount(own[own >= 0], minlength=len(centroids))
  chosen = np.flatnonzero(votes >= least)
  sizes = np.minimum(level.sizes[chosen], per_cluster)
  given = split(sizes, limit, 1, random_keys(seed, 1, chosen))
  rows = [np.zeros(0, np.int64)]
  for cluster, count in zip(chosen.tolist(), given.tolist()):
    members = level.members(cluster)
    rows.append(members[np.argsort(random_keys(seed, 0, members), kind="stable")[:count]])
  return np.sort(np.concatenate(rows))
