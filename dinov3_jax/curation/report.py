"""`report.md`: what every step of a curation found, and the commands that made it."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from dinov3_jax.curation import disk, results


def write_report(folder: pathlib.Path) -> pathlib.Path:
  """Writes `DIR/report.md` about all steps that have ended, in their order.

  Raises:
    ValueError: features are missing.
  """
  store = results.open_store(folder)
  damaged = len(store.damaged())
  bad = int((~store.finite()).sum())
  lines = ["# Curation", "", f"{store.rows:,} images of {store.notes['source']} "
           f"({store.notes['split']}), {store.dim} features each; {damaged:,} images could not be "
           f"read, {bad:,} have features that are not finite."]
  made = store.folder / "command.txt"
  commands = [made.read_text().strip()] if made.exists() else []
  for name, result in results.all_results(folder).items():
    step = result["job"]["step"]
    if step in _SECTIONS:
      lines += ["", f"## {name} ({step})", "", *_SECTIONS[step](result)]
    commands.append(result["command"])
  lines += ["", "## Commands", "", "```bash", *commands, "```", ""]
  disk.write_text(folder / "report.md", "\n".join(lines))
  return folder / "report.md"


def _table(head: list[str], rows: list[list]) -> Iterator[str]:
  cells = lambda row: "| " + " | ".join(_cell(x) for x in row) + " |"
  yield cells(head)
  yield "|" + " --- |" * len(head)
  yield from map(cells, rows)


def _cell(x: Any) -> str:
  return f"{x:,}" if isinstance(x, int) else f"{x:.3f}" if isinstance(x, float) else str(x)


def _cluster(r: dict) -> Iterator[str]:
  of = f" of {r['job']['of']['name']}" if r["job"]["of"] else ""
  yield f"{r['clustered']:,} images{of}, {r['not_finite']:,} left out as they are not finite."
  yield ""
  yield from _table(
    ["level", "clusters", "empty", "median size", "largest", "entropy (bits)", "evenness"],
    [[i, x["clusters"], x["empty"], x["median"], x["largest"], x["entropy"], x["evenness"]]
     for i, x in enumerate(r["levels"], 1)])


def _sample(r: dict) -> Iterator[str]:
  job = r["job"]
  yield (f"{r['rows']:,} images ({r['different']:,} different) of {job['clusters']['name']}, for a "
         f"target of {r['target']:,}; {job['strategy']} ones of a cluster, each "
         f"{job['multiplier']:,} times at most.")
  yield ""
  yield from _table(
    ["level", "clusters", "entropy before", "after", "evenness before", "after", "least", "most",
     "gave all"],
    [[i, x["clusters"], x["before"], x["after"], x["evenness_before"], x["evenness_after"],
      x["least"], x["most"], x["exhausted"]] for i, x in enumerate(r["levels"], 1)])


def _dedup(r: dict) -> Iterator[str]:
  job = r["job"]
  yield (f"Of {r['looked_at']:,} images {r['duplicates']:,} are duplicates of a kept one (cosine "
         f"above {job['threshold']:g}), in {r['groups']:,} groups, the largest of "
         f"{r['largest_group']:,}; {r['rows']:,} are left.")
  for key, count in r["against"].items():
    yield f"{count:,} were dropped as they resemble {key} (above {job['against_threshold']:g})."


def _retrieve(r: dict) -> Iterator[str]:
  job = r["job"]
  how = f"{job['k']:,} neighbours each" if job["k"] else f"clusters of {job['clusters']['name']}"
  yield f"{r['rows']:,} images ({r['different']:,} different) for a set of {r['set']:,}, {how}."


def _mix(r: dict) -> Iterator[str]:
  yield from _table(
    ["part", "source", "images", "also in another", "probability of", ""],
    [[p["name"], p["source"], p["images"], p.get("shared", "-"),
      "a batch" if p["homogeneous"] else "an image", p["probability"]] for p in r["parts"]])


_SECTIONS: dict[str, Callable[[dict], Iterator[str]]] = {
  "cluster": _cluster, "sample": _sample, "dedup": _dedup, "retrieve": _retrieve, "mix": _mix}
