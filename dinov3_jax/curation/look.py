"""A page of pictures: what clusters hold, what a sample is like, which images are duplicates."""

import html
import logging
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from dinov3_jax.curation import disk, results
from dinov3_jax.curation.progress import Report, silent
from dinov3_jax.curation.store import Store
from dinov3_jax.curation.tree import Tree
from dinov3_jax.data.sources import DamagedImage, Source

log = logging.getLogger(__name__)

SIDE = 96  # of a picture, pixels
ACROSS = 10  # pictures a row
CLUSTERS = 5  # that are shown of each kind
SHOWN = 50  # images of a selection
GROUPS = 12  # of duplicates


class Pictures:
  """Small squares of the images behind rows.

  Args:
    store: of the rows.
    source: what the store is of.
  """

  def __init__(self, store: Store, source: Source):
    self._store, self._source = store, source

  def __call__(self, rows: np.ndarray) -> list[Image.Image]:
    """One for each row; a grey one where an image cannot be read any more.

    Raises:
      ValueError: the source is not the one that the features are of.
    """
    if len(self._source) != self._store.notes["items"]:
      raise ValueError(f"{self._store.notes['source']} has {len(self._source):,} images, and had "
                       f"{self._store.notes['items']:,} when its features were made")
    return [self._one(place, name) for place, name
            in zip(self._store.places(rows), self._store.names(rows))]

  def _one(self, place: int, name: str) -> Image.Image:
    canvas = Image.new("RGB", (SIDE, SIDE), (200, 200, 200))
    try:
      item = self._source[place]
    except DamagedImage as error:
      log.warning("%s", error)
      return canvas
    if item["name"] != name:
      raise ValueError(f"{self._store.notes['source']} has {item['name']} where {name} was when "
                       "its features were made")
    image = Image.fromarray(item["image"])
    image.thumbnail((SIDE, SIDE), Image.BICUBIC)
    canvas.paste((255, 255, 255), (0, 0, SIDE, SIDE))
    canvas.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return canvas


def sheet(lines: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
  """A picture with a title above each line of pictures, which goes on below where it is long."""
  height = sum(18 + (SIDE + 4) * -(-len(pictures) // ACROSS) for _, pictures in lines)
  canvas = Image.new("RGB", (ACROSS * (SIDE + 4), max(height, 1)), "white")
  pen, top = ImageDraw.Draw(canvas), 0
  for title, pictures in lines:
    pen.text((2, top + 3), title, fill="black")
    for i, picture in enumerate(pictures):
      canvas.paste(picture, (i % ACROSS * (SIDE + 4), top + 18 + i // ACROSS * (SIDE + 4)))
    top += 18 + (SIDE + 4) * -(-len(pictures) // ACROSS)
  return canvas


def shown_clusters(sizes: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """Which clusters to show: the largest, the smallest that are not empty, and random ones."""
  there = np.flatnonzero(sizes)
  order = there[np.argsort(-sizes[there], kind="stable")]
  return dict(largest=order[:CLUSTERS], smallest=order[::-1][:CLUSTERS],
              random=np.sort(rng.permutation(there)[:CLUSTERS]))


def rows_below(tree: Tree, level: int, cluster: int, count: int, rng: np.random.Generator
               ) -> np.ndarray:
  """Rows of a cluster: the closest of a lowest cluster, of a higher one random rows below it."""
  if level == 0:
    return tree.levels[0].members(cluster)[:count]
  below = np.array([cluster])
  for depth in range(level, -1, -1):
    below = np.concatenate([tree.levels[depth].members(c) for c in below.tolist()])
  return rng.permutation(below)[:count]


def look(folder: pathlib.Path, source: Source, *, name: str = "look", level: int = 1,
         seed: int = 0, report: Report = silent) -> pathlib.Path:
  """Writes `DIR/NAME/index.html` with its pictures, and `DIR/report.md`.

  Args:
    folder: of the curation.
    source: what its features are of.
    name: of the page's folder.
    level: of the clusters to show, from 1; cut to what a clustering has.
    seed: of what is random.
    report: of progress.

  Returns:
    The page.

  Raises:
    ValueError: features are missing, or of another source; a result is of features that are gone.
  """
  store = results.open_store(folder)
  pictures = Pictures(store, source)
  work = results.begin(folder, name, "look", {})
  found = results.all_results(folder)
  page: list[tuple[str, Sequence[tuple[str, Sequence[Image.Image]]]]] = []
  shown = [key for key, result in found.items() if result["job"]["step"] in _SHEETS]
  for key in found:  # before any picture is read
    results.read_current(folder, key, store)
  for i, key in enumerate(["", *shown]):
    rng = np.random.default_rng([seed, i])
    if not key:
      rows = np.sort(rng.permutation(store.rows)[:SHOWN])
      page.append((f"All {store.rows:,} images", [("random ones", pictures(rows))]))
    else:
      page += _SHEETS[found[key]["job"]["step"]](folder, key, found[key], pictures, level, rng)
    report((i + 1) / (len(shown) + 1), key or "all images")
  body = []
  for i, (title, lines) in enumerate(page):
    file = f"{i:02}.jpg"
    canvas = sheet(lines)
    disk.write(work.path / file, lambda out, canvas=canvas: canvas.save(out, "JPEG", quality=90))
    body.append(f'<h2>{html.escape(title)}</h2>\n<img src="{file}" alt="{html.escape(title)}">')
  disk.write_text(work.path / "index.html", "\n".join([
    "<!doctype html>", '<meta charset="utf-8">', "<title>Curation</title>",
    f"<h1>{html.escape(str(store.notes['source']))}</h1>", *body, ""]))
  return work.path / "index.html"


def _cluster_sheets(folder, key, result, pictures: Callable, level, rng):
  tree, _ = results.read_tree(folder, key)
  level = min(level, len(tree.levels)) - 1
  sizes = tree.flat_sizes[level]
  for kind, chosen in shown_clusters(sizes, rng).items():
    lines = [(f"cluster {c}: {sizes[c]:,} images",
              pictures(rows_below(tree, level, c, ACROSS, rng))) for c in chosen.tolist()]
    yield f"{key}: {kind} of the {len(sizes):,} clusters of level {level + 1}", lines


def _selection_sheets(folder, key, result, pictures: Callable, level, rng):
  rows = results.read_rows(folder, key)
  yield f"{key}: {len(rows):,} images", [
    ("random ones", pictures(np.sort(rng.permutation(rows)[:SHOWN])))]


def _duplicate_sheets(folder, key, result, pictures: Callable, level, rng):
  kept = disk.read_array(folder / key / "kept_for.npy")
  of = result["job"]["of"]
  rows = np.arange(len(kept)) if of is None else np.unique(results.read_rows(folder, of["name"]))
  first, count = np.unique(kept, return_counts=True)
  several = first[count > 1]
  size = count[count > 1]
  order = np.argsort(-size, kind="stable")[:GROUPS // 2]
  others = np.setdiff1d(np.arange(len(several)), order)
  chosen = np.concatenate([order, np.sort(rng.permutation(others)[:GROUPS - len(order)])])
  lines = []
  for i in chosen.astype(int).tolist():
    group = rows[kept == several[i]]
    lines.append((f"{size[i]:,} alike, the first is kept", pictures(group[:ACROSS])))
  if lines:
    yield f"{key}: duplicates, the largest groups and random ones", lines
  yield from _selection_sheets(folder, key, result, pictures, level, rng)


_SHEETS = {"cluster": _cluster_sheets, "sample": _selection_sheets, "dedup": _duplicate_sheets,
           "retrieve": _selection_sheets}
