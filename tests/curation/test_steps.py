import json
import logging
import pathlib
import shutil

import numpy as np
import pytest

from dinov3_jax.curation import disk, duplicates, retrieval, splitting, steps
from dinov3_jax.curation.hierarchy import Settings
from dinov3_jax.curation.mixture import Part

LEVELS = (Settings(20, rounds=2, iterations=5), Settings(5, rounds=1, iterations=5, keep=2))


class Killed(BaseException):
  """In place of a SIGKILL: nothing catches it."""


def result_files(folder: pathlib.Path) -> dict[str, bytes]:
  """Everything a step leaves that others may read."""
  return {path.relative_to(folder).as_posix(): path.read_bytes()
          for path in sorted(folder.rglob("*"))
          if path.name in ("rows.npy", "names.txt", "result.json", "ids.npy", "offsets.npy",
                           "centroids.npy", "kept_for.npy") or path.suffix == ".txt"}


def step_of(name, curation, other, mesh):
  return {
    "cluster": lambda: steps.cluster(curation, LEVELS, mesh),
    "two-step": lambda: steps.cluster(curation, [Settings(4, parts=5, restarts=2, iterations=5)],
                                      mesh, name="two"),
    "sample": lambda: steps.sample(curation, 60),
    "dedup": lambda: steps.dedup(curation, mesh, threshold=0.99999, against=[other],
                                 against_threshold=0.9999),
    "retrieve": lambda: steps.retrieve(curation, other, mesh, k=3),
    "mix": lambda: steps.mix(curation, [("sample", 1.0, False)]),
  }[name]


@pytest.fixture
def prepared(curation, inputs, single, stored, monkeypatch):
  """The curation with a clustering and a sample, and another with features of a set."""
  for module, name, size in [(duplicates, "SLAB", 150), (retrieval, "SLAB", 10),
                             (splitting, "UNIT_ROWS", 150), (disk, "SAVE_SECONDS", 0)]:
    monkeypatch.setattr(module, name, size)
  other = curation.parent / "set"
  stored(other, inputs.POOL[40:65] * np.float32(1.001))
  steps.cluster(curation, LEVELS, single)
  steps.sample(curation, 60)
  return curation, other


def deadly(write, spared: int, halfway: bool):
  """`disk.write`, but it dies at the file after the first `spared` ones."""
  count = 0

  def die(path, writer, alone=False):
    nonlocal count
    count += 1

    def half(file):
      writer(file)
      file.truncate(10)
      raise Killed

    write(path, half if halfway and count > spared else writer, alone)
    if count > spared:
      raise Killed

  return die


@pytest.mark.parametrize("name", ["cluster", "two-step", "sample", "dedup", "retrieve", "mix"])
def test_killed_at_any_file_and_started_again(prepared, single, name, monkeypatch):
  """Killed before and after each file takes its name, again and again, until it comes through."""
  curation, other = prepared
  run = step_of(name, curation, other, single)
  run()
  expected = result_files(curation)
  shutil.rmtree(curation / {"cluster": "clusters", "two-step": "two", "dedup": "unique",
                            "retrieve": "retrieved"}.get(name, name))
  write, kills = disk.write, 0
  for attempt in range(200):
    # The kills move on, and are in turn in the middle of a file and right after its new name.
    monkeypatch.setattr(disk, "write", deadly(write, attempt % 2, attempt % 3 == 0))
    try:
      run()
      break
    except Killed:
      kills += 1
  monkeypatch.setattr(disk, "write", write)
  run()
  assert kills > 3 and result_files(curation) == expected


def test_what_is_cut_is_named_and_made_again(prepared, single, caplog):
  """Every array of a clustering in turn, its file half there, then not at all."""
  curation, _ = prepared
  expected = result_files(curation)
  files = sorted((curation / "clusters").rglob("*.npy"))
  assert len(files) > 8
  for file in files:
    if not file.exists():  # was of a middle, and has been deleted since
      continue
    file.write_bytes(file.read_bytes()[:-3])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      steps.cluster(curation, LEVELS, single)
    if file.name in ("ids.npy", "offsets.npy", "centroids.npy"):
      assert f"{file} is cut or damaged: it is made again" in caplog.text
    assert result_files(curation) == expected
    file.unlink()
    steps.cluster(curation, LEVELS, single)
    assert result_files(curation) == expected


def test_cluster_and_sample(prepared):
  curation, _ = prepared
  r = json.loads((curation / "clusters" / "result.json").read_text())
  assert (r["clustered"], r["not_finite"]) == (399, 1)
  assert [level["clusters"] for level in r["levels"]] == [20, 5]
  s = json.loads((curation / "sample" / "result.json").read_text())
  assert s["rows"] == s["different"] == 60
  for level in s["levels"]:
    assert level["evenness_after"] > level["evenness_before"] and level["least"] >= 1


def test_clusters_of_what_deduplication_left(prepared, single):
  curation, _ = prepared
  r = steps.dedup(curation, single, threshold=0.99999)
  assert (r["duplicates"], r["groups"], r["rows"], r["largest_group"]) == (10, 10, 390, 2)
  rows = np.load(curation / "unique" / "rows.npy")
  assert rows.tolist() == list(range(390))
  steps.cluster(curation, LEVELS, single, name="of-unique", of="unique")
  ids = np.load(curation / "of-unique" / "level1" / "ids.npy")
  assert sorted(ids.tolist()) == [i for i in range(390) if i != 20]
  # In cells, of a part of the rows, the same is found.
  again = steps.dedup(curation, single, name="cells", of="unique", threshold=0.99999,
                      clusters="clusters", probes=20)
  assert again["duplicates"] == 0 and again["rows"] == 390
  all_cells = steps.dedup(curation, single, name="all-cells", threshold=0.99999,
                          clusters="clusters", probes=20)
  assert all_cells["duplicates"] == 10


def test_cells_of_a_part_would_miss_the_rest(prepared, single):
  curation, other = prepared
  steps.dedup(curation, single, threshold=0.99999)
  steps.cluster(curation, LEVELS, single, name="part", of="unique")
  with pytest.raises(ValueError, match="the clustering is of a part of the images alone"):
    steps.dedup(curation, single, name="x", threshold=0.9, clusters="part")
  assert steps.retrieve(curation, other, single, k=3, clusters="part", probes=20)["rows"] == 75


def test_a_result_of_a_result_that_was_made_anew(prepared, single):
  """Its settings are part of what is made of it, however far up."""
  curation, _ = prepared
  shutil.rmtree(curation / "clusters")
  steps.cluster(curation, LEVELS, single, seed=1)
  with pytest.raises(ValueError, match=r"sample was made with other settings \(clusters\)"):
    steps.sample(curation, 60)


def test_results_of_features_that_are_gone_are_refused(prepared, single, inputs, stored):
  """Whatever reads them; what is not done yet leaves nothing behind."""
  curation, other = prepared
  steps.retrieve(curation, other, single, k=3)
  shutil.rmtree(curation / "features")
  stored(curation, inputs.POOL[:80])
  before = sorted(curation.rglob("*"))
  for name, used, run in [
      ("clusters", "clusters", lambda: steps.sample(curation, 60, name="new")),
      ("of", "sample", lambda: steps.cluster(curation, LEVELS, single, name="new", of="sample")),
      ("dedup", "sample", lambda: steps.dedup(curation, single, name="new", of="sample")),
      ("cells", "clusters", lambda: steps.dedup(curation, single, name="new",
                                                clusters="clusters")),
      ("whole", "clusters", lambda: steps.retrieve(curation, other, single, name="new", k=None,
                                                   clusters="clusters")),
      ("near", "clusters", lambda: steps.retrieve(curation, other, single, name="new", k=3,
                                                  clusters="clusters")),
      ("mix", "retrieved", lambda: steps.mix(curation, [("retrieved", 1.0, False)], name="new")),
  ]:
    command = json.loads((curation / used / "result.json").read_text())["command"]
    with pytest.raises(ValueError, match=rf"{used} is of features that are gone") as error:
      run()
    assert f"delete it, and make it again by `{command}`" in str(error.value), name
    assert sorted(curation.rglob("*")) == before, name
  shutil.rmtree(curation / "clusters")
  steps.cluster(curation, LEVELS, single)
  assert steps.sample(curation, 60, name="new")["rows"] == 60


def test_against_an_evaluation(prepared, single):
  curation, other = prepared
  r = steps.dedup(curation, single, threshold=0.99999, against=[other], against_threshold=0.99999)
  assert r["against"] == {"set": 25} and r["rows"] == 365
  lines = (curation / "unique" / "dropped-set.txt").read_text().splitlines()
  assert lines[0] == "40.jpg\t0.jpg\t1.000" and lines[-1] == "64.jpg\t24.jpg\t1.000"


def test_names_of_evaluations_are_checked_first(prepared, single):
  curation, other = prepared
  other = other.rename(other.parent / "my val")
  with pytest.raises(ValueError, match="my val: rename it, or give a link to it, with letters"):
    steps.dedup(curation, single, against=[other])
  assert not (curation / "unique").exists()


def test_retrieve(prepared, single):
  curation, other = prepared
  r = steps.retrieve(curation, other, single, k=3)
  assert (r["rows"], r["set"]) == (75, 25) and r["different"] <= 75
  assert set(range(40, 65)) <= set(np.load(curation / "retrieved" / "rows.npy").tolist())
  in_cells = steps.retrieve(curation, other, single, name="cells", k=3, clusters="clusters",
                            probes=20)
  assert in_cells == r
  whole = steps.retrieve(curation, other, single, name="whole", k=None, clusters="clusters",
                         least=2)
  assert whole["rows"] == whole["different"] > 75
  with pytest.raises(ValueError, match="whole clusters need a clustering"):
    steps.retrieve(curation, other, single, name="x", k=None)
  manifest = other / "features" / "manifest.json"
  manifest.write_text(manifest.read_text().replace('"model": "m"', '"model": "another"'))
  with pytest.raises(ValueError, match="features of another model than the pool: embed both alike"):
    steps.retrieve(curation, other, single, name="y")


def test_mix(prepared, single):
  curation, other = prepared
  steps.retrieve(curation, other, single, k=3)
  r = steps.mix(curation, [("sample", 2.0, False), ("retrieved", 1.0, False),
                           Part("in1k", "tfds:imagenet2012", "train", None, 0.1, True, 1000)])
  assert [round(part["probability"], 3) for part in r["parts"]] == [0.667, 0.333, 0.1]
  assert r["parts"][2]["source"] == "tfds:imagenet2012" and r["parts"][0]["source"] == "pool"
  sampled, found = (set(np.load(curation / name / "rows.npy")) for name in ("sample", "retrieved"))
  assert r["parts"][0]["shared"] == len(sampled & found)
  assert len((curation / "mix" / "retrieved.txt").read_text().splitlines()) == 75
  with pytest.raises(ValueError, match="nothing has no result"):
    steps.mix(curation, [("nothing", 1.0, False)], name="other")


def test_a_missing_shard_stops_every_step(prepared, single):
  curation, other = prepared
  (curation / "features" / "00001.json").unlink()
  for name in ("cluster", "sample", "dedup", "retrieve", "mix"):
    with pytest.raises(ValueError, match=r"00001\.npy is missing: the same `curate embed` again"):
      step_of(name, curation, other, single)()
