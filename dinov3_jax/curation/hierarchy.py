"""Hierarchical k-means: clusters of features, clusters of their centroids, and so on.

Plain k-means has most of its centroids where most of the rows are. Two things spread them out (Vo
et al. 2024): each level clusters the centroids below it as points without weight, and inside a
level, k-means is done anew on a sample that has as many rows of every cluster.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dinov3_jax.curation import kmeans, splitting
from dinov3_jax.curation.disk import Folder
from dinov3_jax.curation.kmeans import Assignment
from dinov3_jax.curation.progress import Report, part, silent
from dinov3_jax.curation.rows import ArrayPoints, Points
from dinov3_jax.curation.tree import Level, Tree, make_level

# (rows of the level's input that take part, how many, level from 1, round from 0) -> rows.
Seeder = Callable[[np.ndarray, int, int, int], np.ndarray]
PAIR = np.dtype([("cluster", np.int32), ("distance", np.float32)])


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of one level.

  Attributes:
    k: clusters; cut to the rows there are.
    rounds: how often k-means is done anew on a sample; 0 for never.
    keep: rows of each cluster in the sample; None: half of the mean cluster, rounded up, as in the
      paper. With 1 or less there are no rounds.
    strategy: which rows, the "closest" to the centroid or "random" ones.
    iterations: of each k-means.
    parts: into how many each cluster is split in a second step, which takes the place of rounds; 1
      for no second step.
    restarts: runs of each such split.
  """

  k: int
  rounds: int = 10
  keep: int | None = None
  strategy: str = "closest"
  iterations: int = kmeans.ITERATIONS
  parts: int = 1
  restarts: int = splitting.RESTARTS

  def __post_init__(self):
    if self.strategy not in ("closest", "random"):
      raise ValueError(f"unknown strategy {self.strategy!r}; take closest or random")
    for name in ("k", "iterations", "parts", "restarts"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
    if self.rounds < 0:
      raise ValueError(f"rounds must not be negative, not {self.rounds}")


@dataclasses.dataclass(frozen=True)
class Clusters:
  """Of one level.

  Attributes:
    centroids: float32 [k, d].
    assigned: of the level's whole input.
  """

  centroids: np.ndarray
  assigned: Assignment

  @property
  def level(self) -> Level:
    return make_level(self.assigned.cluster, self.assigned.distance, len(self.centroids))


def hierarchy(points: Points, levels: Sequence[Settings], *, seed: int = 0,
              folder: Folder | None = None, seeder: Seeder | None = None,
              report: Report = silent) -> list[Clusters]:
  """Clusters points, and the centroids of every level again.

  A centroid without rows stays where it was, and takes part in the level above like all others.

  Args:
    points: the rows of the lowest level.
    levels: settings from the lowest level to the highest.
    seed: of what is random.
    folder: keeps what is done.
    seeder: chooses the rows where a k-means begins, in place of k-means++.
    report: of progress.

  Returns:
    For each level, its clusters.

  Raises:
    ValueError: no levels, a level with more clusters than the one below, no finite row.
  """
  if not levels:
    raise ValueError("give at least one number of clusters")
  sizes = [level.k * level.parts for level in levels]
  if sizes != sorted(sizes, reverse=True):
    raise ValueError(f"levels go from the most clusters to the fewest, not {sizes}")
  folder = folder or Folder(None)
  work = np.cumsum([0, *(n * k for n, k in zip([points.rows, *sizes], sizes))]).astype(float)
  done = []
  for i, settings in enumerate(levels):
    name, share = f"level{i + 1}", work[[i, i + 1]] / work[-1]
    progress = lambda fraction, text, name=name, share=share: part(report, *share)(
      fraction, f"{name}: {text}")
    step = _Step(points, settings, folder, i + 1, seed, seeder, progress)
    centroids = folder.array(f"{name}/centroids", step.centroids)
    pairs = step.final_pairs(centroids)
    done.append(Clusters(centroids, Assignment(pairs["cluster"], pairs["distance"])))
    points = ArrayPoints(centroids, points.mesh)
  return done


def tree(clusters: Sequence[Clusters]) -> Tree:
  """The levels as a tree of their members."""
  return Tree([level.level for level in clusters])


class _Step:
  """One level. Everything is made when it is asked for, and only where it is not kept."""

  def __init__(self, points, settings, folder, number, seed, seeder, report):
    self.points, self.settings, self.folder = points, settings, folder
    self.number, self.seed, self.seeder, self.report = number, seed, seeder, report
    self.name = f"level{number}"
    count = int(np.count_nonzero(points.finite()))
    self.k = min(settings.k, count)
    keep = -(-count // (2 * max(self.k, 1))) if settings.keep is None else settings.keep
    self.keep = keep
    self.rounds = settings.rounds if keep > 1 and settings.parts == 1 else 0

  def centroids(self) -> np.ndarray:
    """The level's centroids."""
    if self.settings.parts == 1:
      return self.of_round(self.rounds)
    parts = self.parts()
    self.final_pairs(None, parts)
    return np.concatenate([unit.centroids for unit in parts])

  def of_round(self, number: int) -> np.ndarray:
    """The centroids after a round; round 0 is k-means on everything."""
    return self.folder.array(f"{self.name}/round{number}", lambda: self._fit(number))

  def _fit(self, number: int) -> np.ndarray:
    name = f"{self.name}/round{number}"
    share = 1 / (self.rounds + 1)
    report = part(self.report, number * share, (number + 1) * share)
    text = f"round {number} of {self.rounds}" if self.rounds else "k-means"
    if number == 0:
      rows, points = np.arange(self.points.rows), self.points
    else:
      rows = self.folder.array(f"{name}.rows", lambda: self._kept(number))
      self.folder.drop(f"{self.name}/assigned{number - 1}")
      points = ArrayPoints(self.points.take(rows), self.points.mesh, self.k * self.keep)
    total = self.settings.iterations
    middle = self.folder.middle(f"{name}.middle")
    if middle is None:
      start, done = points.take(self._seeds(points, rows, number, part(report, 0, 0.2), text)), 0
    else:
      start, done = middle["centroids"], int(middle["iteration"])
    save = self.folder.saver(f"{name}.middle")

    def watch(i: int, get: Callable[[], np.ndarray]):
      report(0.2 + 0.8 * i / total, f"{text}, iteration {i} of {total}")
      save(lambda: dict(centroids=get(), iteration=i))

    centroids = kmeans.lloyd(points, start, total, done=done, watch=watch)
    self.folder.drop(f"{name}.seeds")
    return centroids

  def _seeds(self, points, rows, number, report, text) -> np.ndarray:
    """Where in `points`, the given rows of the level's input, a round begins."""
    if self.seeder:
      chosen = self.seeder(rows, self.k, self.number, number)
      return np.searchsorted(rows, chosen)
    name = f"{self.name}/round{number}.seeds"
    middle, save = self.folder.middle(name), self.folder.saver(name)
    done = kmeans.seeding.Progress(**middle) if middle else None

    def watch(i: int, get: Callable):
      report(i / self.k, f"{text}, seed {i:,} of {self.k:,}")
      save(lambda: get()._asdict())

    rng = np.random.default_rng([self.seed, self.number, number])
    return kmeans.seeds(points, self.k, rng, done=done, watch=watch)

  def _kept(self, number: int) -> np.ndarray:
    """The rows of the sample of a round, in their order."""
    before = self.of_round(number - 1)
    pairs = self.assigned(number - 1, before)
    cluster, distance = pairs["cluster"], pairs["distance"]
    if self.settings.strategy == "random":
      distance = np.random.default_rng([self.seed, self.number, number, 1]).uniform(
        size=len(cluster))
    return np.sort(make_level(cluster, distance, len(before)).closest(self.keep))

  def assigned(self, number: int, centroids: np.ndarray) -> np.ndarray:
    """What all rows are assigned to after a round, chunk by chunk: `PAIR` [n]."""
    names = [f"{self.name}/assigned{number}/{i:05}" for i in range(len(self.points.sizes()))]
    there = [self.folder.has(name) for name in names]
    parts = []
    found = None
    for i, name in enumerate(names):
      if not there[i]:
        if found is None:
          found = kmeans.assign_chunks(self.points, centroids, i)
        pairs = _pairs(next(found))
        parts.append(self.folder.array(name, lambda pairs=pairs: pairs))
      else:
        found = None
        parts.append(self.folder.array(name, lambda: None))
    return np.concatenate(parts)

  def final_pairs(self, centroids: np.ndarray | None, parts: list | None = None) -> np.ndarray:
    """What all rows are assigned to in the end."""
    if self.settings.parts == 1:
      return self.assigned(self.rounds, centroids)
    return self.folder.array(f"{self.name}/assigned", lambda: self._join(parts or self.parts()))

  def parts(self) -> list[splitting.Parts]:
    """The second step: every cluster's parts, unit by unit."""
    level = self._coarse()
    done, units = [], list(splitting.units(level))
    for i, span in enumerate(units):
      name = f"{self.name}/parts/{i:05}"
      make = lambda span=span, i=i: splitting.split_unit(
        self.points, level, span, self.settings.parts, seed=self.seed,
        iterations=self.settings.iterations, restarts=self.settings.restarts,
        report=lambda share: self.report((i + share) / len(units), "splitting clusters"))
      done.append(self._kept_parts(name, make))
    return done

  def _kept_parts(self, name: str, make: Callable[[], splitting.Parts]) -> splitting.Parts:
    made = []
    get = lambda: made[0] if made else made.append(make()) or made[0]
    return splitting.Parts(*(self.folder.array(f"{name}.{field}",
                                               lambda field=field: getattr(get(), field))
                             for field in splitting.Parts._fields))

  def _coarse(self) -> Level:
    """The clusters of the first step."""
    centroids = self.of_round(0)
    pairs = self.assigned(0, centroids)
    return make_level(pairs["cluster"], pairs["distance"], len(centroids))

  def _join(self, parts: list[splitting.Parts]) -> np.ndarray:
    ids = self._coarse().ids
    first = np.cumsum([0, *(len(unit.centroids) for unit in parts)])
    pairs = np.zeros(self.points.rows, PAIR)
    pairs["cluster"] = -1
    pairs["cluster"][ids] = np.concatenate([unit.part + begin for unit, begin
                                            in zip(parts, first)])
    pairs["distance"][ids] = np.concatenate([unit.distance for unit in parts])
    return pairs


def _pairs(assigned: Assignment) -> np.ndarray:
  pairs = np.empty(len(assigned.cluster), PAIR)
  pairs["cluster"], pairs["distance"] = assigned.cluster, assigned.distance
  return pairs
