"""The steps of a curation, each from what lies in its folder to a result beside it.

Every step can be killed at any moment: the same call goes on with what is whole. A step that was
done with the same settings is not done again.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dinov3_jax.curation import duplicates, mixture, results, retrieval
from dinov3_jax.curation.duplicates import Cells
from dinov3_jax.curation.hierarchy import Settings, hierarchy
from dinov3_jax.curation.mixture import Part
from dinov3_jax.curation.progress import Report, part, silent
from dinov3_jax.curation.sampling import sample as draw
from dinov3_jax.curation.store import Store, StorePoints
from dinov3_jax.curation.tree import Level, entropy, evenness


def cluster(folder: pathlib.Path, levels: Sequence[Settings], mesh: Mesh, *,
            name: str = "clusters", of: str | None = None, seed: int = 0, report: Report = silent
            ) -> dict[str, Any]:
  """Hierarchical k-means of the features.

  Args:
    folder: of the curation.
    levels: settings from the lowest level to the highest.
    mesh: from `rows.make_mesh`.
    name: of the result.
    of: the result whose rows to cluster, such as "unique"; None: all rows.
    seed: of what is random.
    report: of progress.

  Returns:
    The result's summary: `clustered` and `not_finite` rows, and for each of the `levels` its
    clusters, the empty ones, the entropy of their sizes and more.
  """
  store = results.open_store(folder)
  rows = None if of is None else np.unique(results.read_rows(folder, of, store))
  points = StorePoints(store, mesh, rows)
  work = results.begin(folder, name, "cluster", dict(
    features=store.fingerprint, of=results.origin(folder, of, store), seed=seed,
    levels=[vars(level) for level in levels]))
  found = hierarchy(points, levels, seed=seed, folder=work, report=report)
  tree = results.write_tree(work, found, rows)
  clustered = int(tree.flat_sizes[0].sum())
  return results.finish(work, dict(
    clustered=clustered, not_finite=points.rows - clustered, levels=[
      dict(clusters=len(sizes), empty=int((sizes == 0).sum()), largest=int(sizes.max()),
           median=float(np.median(sizes)), entropy=entropy(sizes), evenness=evenness(sizes),
           mean_distance=float(level.assigned.distance[level.assigned.cluster >= 0].mean()))
      for sizes, level in zip(tree.flat_sizes, found)]))


def sample(folder: pathlib.Path, target: int, *, name: str = "sample", clusters: str = "clusters",
           multiplier: int = 1, strategy: str = "random", seed: int = 0) -> dict[str, Any]:
  """A balanced sample of a clustering; see `sampling.sample`.

  Returns:
    The result's summary: how many `rows`, and for each of the `levels` the entropy before and after
    and what its clusters gave.
  """
  store = results.open_store(folder)
  tree, _ = results.read_tree(folder, clusters, store)
  found = draw(tree, target, multiplier=multiplier, strategy=strategy, seed=seed)
  work = results.begin(folder, name, "sample", dict(
    features=store.fingerprint, clusters=results.origin(folder, clusters, store), target=target,
    multiplier=multiplier, strategy=strategy, seed=seed))
  return results.finish(work, dict(
    different=len(np.unique(found.rows)), target=target, levels=[
      dict(clusters=len(given), before=entropy(sizes), after=entropy(given),
           evenness_before=evenness(sizes), evenness_after=evenness(given),
           least=int(given[sizes > 0].min(initial=target)), most=int(given.max()),
           exhausted=int(((given == sizes * multiplier) & (sizes > 0)).sum()))
      for sizes, given in zip(tree.flat_sizes, found.given)]), store, found.rows)


def _cells(folder: pathlib.Path, clusters: str | None, probes: int, store: Store
           ) -> Cells | None:
  """The lowest level of a clustering to look into."""
  if clusters is None:
    return None
  tree, centroids = results.read_tree(folder, clusters, store)
  return Cells(centroids[0], tree.levels[0], probes)


def _cells_of(cells: Cells | None, rows: np.ndarray, finite: np.ndarray) -> Cells | None:
  """Cells of some rows alone, which get the numbers of their places among these.

  Raises:
    ValueError: a row that is finite is in no cell, and so nothing would find it.
  """
  if cells is None:
    return None
  level = cells.level
  place = np.full(int(max(level.ids.max(initial=-1), rows.max(initial=-1))) + 1, -1)
  place[rows] = np.arange(len(rows))
  ids = place[level.ids]
  if np.count_nonzero(ids >= 0) < np.count_nonzero(finite):
    raise ValueError("the clustering is of a part of the images alone: make one of all that are to "
                     "be looked at")
  own = np.repeat(np.arange(len(level.sizes)), level.sizes)
  sizes = np.bincount(own[ids >= 0], minlength=len(level.sizes))
  return Cells(cells.centroids, Level(ids[ids >= 0], np.concatenate([[0], np.cumsum(sizes)])),
               cells.probes)


def dedup(folder: pathlib.Path, mesh: Mesh, *, name: str = "unique", of: str | None = None,
          threshold: float = duplicates.THRESHOLD, k: int = duplicates.NEIGHBOURS,
          against: Sequence[pathlib.Path] = (),
          against_threshold: float = duplicates.AGAINST_THRESHOLD, clusters: str | None = None,
          probes: int = 8, recall: float = 1.0, report: Report = silent) -> dict[str, Any]:
  """Rows without near duplicates, and without what resembles an evaluation's images.

  Args:
    folder: of the curation.
    mesh: from `rows.make_mesh`.
    name: of the result.
    of: the result among whose rows to look; None: all rows.
    threshold: of the cosine, for near duplicates.
    k: neighbours of each row.
    against: folders with the features of evaluations, by the same model.
    against_threshold: of the cosine, with an evaluation's image.
    clusters, probes: look in so many nearest clusters of a clustering; None: everywhere, exactly.
    recall: see `neighbours.neighbours`.
    report: of progress.

  Returns:
    The result's summary: `rows` that are left, `duplicates`, `groups` of them, and how many were
    dropped against each evaluation; `dropped-NAME.txt` names each of these, the image that it
    resembles, and their cosine, "-" where it does so through another image.
  """
  for path in against:
    _check_set(path)
  store = results.open_store(folder)
  rows = None if of is None else np.unique(results.read_rows(folder, of, store))
  points = StorePoints(store, mesh, rows)
  numbers = np.arange(points.rows) if rows is None else rows
  cells = _cells(folder, clusters, probes, store)
  here_cells = _cells_of(cells, numbers, points.finite())
  sets = {path.name: results.open_store(path) for path in against}
  if len(sets) < len(against):
    raise ValueError("two folders of evaluations have one name: rename one")
  for path in against:
    _same_model(store, results.open_store(path), path)
  work = results.begin(folder, name, "dedup", dict(
    features=store.fingerprint, of=results.origin(folder, of, store), threshold=threshold,
    neighbours=k, against={key: other.fingerprint for key, other in sets.items()},
    against_threshold=against_threshold, clusters=results.origin(folder, clusters, store),
    probes=probes, recall=recall))
  look = dict(k=k, recall=recall)
  share = 1 / (1 + 2 * len(sets))
  kept, _ = duplicates.deduplicate(points, threshold, folder=work, report=part(report, 0, share),
                                   cells=here_cells, **look)
  work.array("kept_for", lambda: numbers[kept])
  left = numbers[np.unique(kept)]
  groups = np.bincount(kept, minlength=points.rows)
  summary = dict(duplicates=points.rows - len(left), groups=int((groups > 1).sum()),
                 largest_group=int(groups.max()), looked_at=points.rows, against={})
  for i, (key, other) in enumerate(sets.items()):
    here = StorePoints(store, mesh, left)
    inside = results.begin(work.path, f"against-{key}", "against", dict(rows=len(left)))
    found = duplicates.leaks(
      here, StorePoints(other, mesh), against_threshold, folder=inside,
      cells=_cells_of(cells, left, here.finite()),
      report=part(report, share * (1 + 2 * i), share * (3 + 2 * i)), **look)
    _write_dropped(work.path / f"dropped-{key}.txt", store, left[found.rows], other, found)
    summary["against"][key] = len(found.rows)
    left = np.delete(left, found.rows)
  return results.finish(work, summary, store, left)


def _write_dropped(path, store, rows, other, found) -> None:
  lines = (f"{ours}\t{theirs}\t{'-' if np.isnan(s) else format(s, '.3f')}\n" for ours, theirs, s
           in zip(store.names(rows), other.names(found.reference), found.similarity))
  results.disk.write_text(path, "".join(lines))


def _check_set(path: pathlib.Path) -> None:
  """Raises a ValueError if no result can be named after an evaluation's folder."""
  try:
    results.check_name(f"against-{path.name}")
  except ValueError as error:
    raise ValueError(f"results are named after {path}: rename it, or give a link to it, with "
                     "letters, digits, -, _ and . alone") from error


def _same_model(store, other, folder: pathlib.Path) -> None:
  different = [key for key in ("model", "preprocessing", "dim")
               if store.notes[key] != other.notes[key]]
  if different:
    raise ValueError(f"{folder} has features of another {' and '.join(different)} than the pool: "
                     "embed both alike")


def retrieve(folder: pathlib.Path, seeds: pathlib.Path, mesh: Mesh, *, name: str = "retrieved",
             k: int | None = 4, clusters: str | None = None, probes: int = 8, recall: float = 1.0,
             least: int = 4, per_cluster: int = 10_000, limit: int = 1_000_000, seed: int = 0,
             report: Report = silent) -> dict[str, Any]:
  """Rows that are like the images of a set.

  Args:
    folder: of the curation.
    seeds: the folder with the features of the set, by the same model.
    mesh: from `rows.make_mesh`.
    name: of the result.
    k: neighbours of each image; None takes whole clusters, for small sets.
    clusters, probes: look in so many nearest clusters of a clustering; without k, the clustering
      whose lowest level to take clusters of.
    recall: see `neighbours.neighbours`.
    least, per_cluster, limit, seed: see `retrieval.cluster_rows`.
    report: of progress.

  Returns:
    The result's summary: how many `rows`, how many `different` ones, and images of the set.
  """
  store, other = results.open_store(folder), results.open_store(seeds)
  _same_model(store, other, seeds)
  if k is None and clusters is None:
    raise ValueError("whole clusters need a clustering: give one, or a number of neighbours")
  points, queries = StorePoints(store, mesh), StorePoints(other, mesh)
  work = results.begin(folder, name, "retrieve", dict(
    features=store.fingerprint, seeds=other.fingerprint, k=k, probes=probes, recall=recall,
    clusters=results.origin(folder, clusters, store), least=least, per_cluster=per_cluster,
    limit=limit, seed=seed))
  if k is None:
    tree, centroids = results.read_tree(folder, clusters, store)
    rows = retrieval.cluster_rows(queries, centroids[0], tree.levels[0], least=least,
                                  per_cluster=per_cluster, limit=limit, seed=seed)
  else:
    found = retrieval.nearest_rows(queries, points, k, folder=work, recall=recall, report=report,
                                   cells=_cells(folder, clusters, probes, store))
    rows = np.sort(found[found >= 0])
  return results.finish(work, dict(different=len(np.unique(rows)), set=other.rows), store, rows)


def mix(folder: pathlib.Path, parts: Sequence[Part | tuple[str, float | None, bool]], *,
        name: str = "mix") -> dict[str, Any]:
  """Writes a mixture of results and of other sources; see `mixture`.

  Args:
    folder: of the curation.
    parts: for a result (its name, weight, whether homogeneous); for another source a `Part`.
    name: of the result.

  Returns:
    The result's summary: the `parts` with their images, probabilities, and how many `shared` ones
    are in another part of the same source, too.
  """
  store = results.open_store(folder)
  made, rows = [], {}
  for entry in parts:
    if isinstance(entry, Part):
      made.append(entry)
      continue
    key, weight, homogeneous = entry
    rows[key] = np.sort(results.read_rows(folder, key, store))
    made.append(Part(key, store.notes["source"], store.notes["split"], store.names(rows[key]),
                     weight, homogeneous))
  mixture.probabilities(made)  # raises before anything is written
  work = results.begin(folder, name, "mix", dict(features=store.fingerprint, parts=[
    dict(name=p.name, source=p.source, images=p.count, weight=p.weight, homogeneous=p.homogeneous)
    for p in made]))
  written = mixture.write(work.path, made)
  for entry in written["sources"]:
    others = [other for key, other in rows.items() if key != entry["name"]]
    if entry["name"] in rows and others:
      own = np.unique(rows[entry["name"]])
      entry["shared"] = int(np.isin(own, np.concatenate(others)).sum())
  return results.finish(work, dict(parts=written["sources"]))
