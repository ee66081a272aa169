"""What a step leaves in a curation's folder, for the steps after it and for people.

```
DIR/features/           see `store`
DIR/NAME/job.json       the step and its settings
DIR/NAME/rows.npy       the rows it chose, where it chooses rows: int64, sorted or in a tree's order
DIR/NAME/names.txt      their images, one a line
DIR/NAME/result.json    counts, and the command; written last
```
"""

import json
import pathlib
import re
import sys
from typing import Any

import numpy as np

from dinov3_jax.curation import disk
from dinov3_jax.curation.disk import Folder
from dinov3_jax.curation.hierarchy import Clusters
from dinov3_jax.curation.store import Store
from dinov3_jax.curation.tree import Level, Tree

FEATURES = "features"
NAMES_AT_ONCE = 2**20


def open_store(folder: pathlib.Path) -> Store:
  """The features of a curation's folder.

  Raises:
    ValueError: there are none, or a shard is not whole.
  """
  store = Store(folder / FEATURES)
  store.check()
  return store


def check_name(name: str) -> None:
  """Raises a ValueError for what cannot be the folder of a result."""
  if not re.fullmatch(r"[\w.-]+", name) or name in (FEATURES, ".", ".."):
    raise ValueError(f"{name!r} cannot name a result: take letters, digits, - and _, and not "
                     f"{FEATURES!r}")


def begin(folder: pathlib.Path, name: str, step: str, job: dict[str, Any]) -> Folder:
  """The folder of a step.

  Raises:
    ValueError: a name that is no folder's, or that has the work of another job.
  """
  check_name(name)
  return Folder(folder / name, dict(step=step, **job))


def finish(work: Folder, summary: dict[str, Any], store: Store | None = None,
           rows: np.ndarray | None = None) -> dict[str, Any]:
  """Writes what a step found.

  Args:
    work: its folder.
    summary: counts, for the report.
    store, rows: the rows that it chose, if it does.
  """
  if rows is not None:
    disk.write_array(work.path / "rows.npy", rows)
    disk.write(work.path / "names.txt", lambda file: _write_names(file, store, rows))
    summary = dict(rows=len(rows), **summary)
  disk.write_json(work.path / "result.json", dict(summary, command=command()))
  return summary


def _write_names(file, store: Store, rows: np.ndarray) -> None:
  for i in range(0, len(rows), NAMES_AT_ONCE):
    text = "".join(f"{name}\n" for name in store.names(rows[i:i + NAMES_AT_ONCE]))
    file.write(text.encode(errors="surrogateescape"))


def command() -> str:
  """The command line of this process."""
  program = pathlib.Path(sys.argv[0])
  start = "python -m dinov3_jax.curate" if program.stem == "curate" else program.name
  return " ".join([start, *sys.argv[1:]])


def read_result(folder: pathlib.Path, name: str) -> dict[str, Any]:
  """What a step found: its summary, and its job under "job".

  Raises:
    ValueError: the step has not ended.
  """
  file = folder / name / "result.json"
  if not file.exists():
    raise ValueError(f"{folder / name} has no result: run the step of this name first")
  return dict(json.loads(file.read_text()),
              job=json.loads((folder / name / "job.json").read_text()))


def read_current(folder: pathlib.Path, name: str, store: Store | None = None) -> dict[str, Any]:
  """`read_result` of a step whose rows are those of the features that are there now.

  Args:
    folder: of the curation.
    name: of the result.
    store: the folder's features, where they are open; their fingerprint takes a while to make.

  Raises:
    ValueError: the step has not ended, or was of features that are gone.
  """
  result = read_result(folder, name)
  store = store or Store(folder / FEATURES)
  if result["job"].get("features", store.fingerprint) != store.fingerprint:
    raise ValueError(f"{folder / name} is of features that are gone, and its rows mean nothing in "
                     f"those of {store.folder}: delete it, and make it again by "
                     f"`{result['command']}`")
  return result


def origin(folder: pathlib.Path, name: str | None, store: Store | None = None
           ) -> dict[str, Any] | None:
  """A result that another is made of, and all that it was made of, for the job of the other.

  Raises:
    ValueError: as `read_current`.
  """
  return name and dict(name=name, job=read_current(folder, name, store)["job"])


def read_rows(folder: pathlib.Path, name: str, store: Store | None = None) -> np.ndarray:
  """The rows that a step chose.

  Raises:
    ValueError: as `read_current`; it chooses none, or its file is cut.
  """
  read_current(folder, name, store)
  file = folder / name / "rows.npy"
  if not file.exists():
    raise ValueError(f"{folder / name} is a step that chooses no rows")
  return disk.read_array(file)


def all_results(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """What every step that has ended found, by name, in the order of their ends."""
  files = sorted(folder.glob("*/result.json"), key=lambda file: file.stat().st_mtime_ns)
  return {file.parent.name: read_result(folder, file.parent.name) for file in files}


def write_tree(work: Folder, levels: list[Clusters], rows: np.ndarray | None) -> Tree:
  """Keeps what is in which cluster; rows of a part of the features get their own numbers back."""
  made = []
  for i, clusters in enumerate(levels, 1):
    level = clusters.level
    ids = level.ids if rows is None or i > 1 else rows[level.ids]
    made.append(Level(work.array(f"level{i}/ids", lambda ids=ids: ids),
                      work.array(f"level{i}/offsets", lambda level=level: level.offsets)))
  return Tree(made)


def read_tree(folder: pathlib.Path, name: str, store: Store | None = None
              ) -> tuple[Tree, list[np.ndarray]]:
  """The clusters of a `cluster` step, and the centroids of each level.

  Raises:
    ValueError: as `read_current`; there are none, or a file is cut.
  """
  result = read_current(folder, name, store)
  if result["job"]["step"] != "cluster":
    raise ValueError(f"{folder / name} is no clustering but what `{result['job']['step']}` made")
  try:
    path = lambda i, what: folder / name / f"level{i}" / f"{what}.npy"
    numbers = range(1, len(result["levels"]) + 1)
    levels = [Level(*(disk.read_array(path(i, what)) for what in ("ids", "offsets")))
              for i in numbers]
    return Tree(levels), [disk.read_array(path(i, "centroids")) for i in numbers]
  except (FileNotFoundError, ValueError) as error:
    raise ValueError(f"{error}: the same `curate cluster` again makes only what is not whole"
                     ) from error


