import json

import numpy as np
import pytest

from dinov3_jax.curation import kmeans
from dinov3_jax.curation.rows import ArrayPoints, fetch
from dinov3_jax.curation.store import Store, StorePoints


def notes(items, size=100, dim=8):
  return dict(source="folder", split="all", items=items, shard_items=size, dim=dim, model="m",
              preprocessing="p")


@pytest.fixture
def store(inputs, tmp_path):
  """The first 250 of the recorded points in three shards, of which every 50th is damaged."""
  store = Store.create(tmp_path / "features", notes(250))
  for shard in range(store.shards):
    items = [i for i in store.items(shard) if i % 50]
    damaged = {f"{i}.jpg": "broken" for i in store.items(shard) if i % 50 == 0}
    store.write(shard, inputs.POINTS[items], items, [f"{i}.jpg" for i in items], damaged)
  return Store(store.folder)


def kept():
  return np.array([i for i in range(250) if i % 50])


def test_rows_names_and_places(inputs, store):
  store.check()
  assert (store.rows, store.dim, store.shards) == (245, 8, 3)
  assert store.offsets == [0, 98, 196, 245]
  rows = np.array([200, 3, 97, 98, 3])
  np.testing.assert_array_equal(store.take(rows), inputs.POINTS[kept()[rows]].astype("f2"))
  assert store.names(rows) == [f"{i}.jpg" for i in kept()[rows]]
  assert store.places(rows) == kept()[rows].tolist()
  assert store.damaged() == {f"{i}.jpg": "broken" for i in range(0, 250, 50)}
  assert [store.shard_of(row) for row in (0, 97, 98, 244)] == [0, 0, 1, 2]
  assert store.take(np.zeros(0, int)).shape == (0, 8) and store.names(np.zeros(0, int)) == []


def test_a_shard_that_is_cut_or_missing_is_named(store):
  file = store.folder / "00001.npy"
  whole = file.read_bytes()
  for spoil, message in [
      (lambda: file.write_bytes(whole[:500]), "00001.npy is cut or damaged"),
      (file.unlink, "00001.npy is missing"),
      (lambda: np.save(file, np.zeros((97, 8), "f2")), r"00001.npy has \[97, 8\] in place of 98"),
      (lambda: (store.folder / "00001.json").write_text('{"rows'), "00001.json is cut"),
      ((store.folder / "00001.json").unlink, "00001.npy is missing")]:
    spoil()
    assert [bool(store.fault(i)) for i in range(3)] == [False, True, False]
    with pytest.raises(ValueError, match=message + ".*makes only what is not whole"):
      Store(store.folder).check()
  (store.folder / "00002.json").unlink()
  with pytest.raises(ValueError, match=r"\(and 1 more\)"):
    Store(store.folder).check()


def test_other_jobs_and_empty_folders_are_refused(store, tmp_path):
  assert Store.create(store.folder, notes(250)).fingerprint == store.fingerprint
  with pytest.raises(ValueError, match=r"made with other settings \(items, shard_items\)"):
    Store.create(store.folder, notes(251, 50))
  with pytest.raises(ValueError, match=r"run `python -m dinov3_jax\.curate embed` first"):
    Store(tmp_path)
  empty = Store.create(tmp_path / "none", notes(3))
  empty.write(0, np.zeros((0, 8)), [], [], {"a": "x", "b": "x", "c": "x"})
  with pytest.raises(ValueError, match="none of its images could be read"):
    Store(empty.folder).check()


def test_rows_beyond_half_precision_are_not_finite(tmp_path):
  store = Store.create(tmp_path, notes(3, dim=2))
  store.write(0, np.array([[1, 2], [1e6, 0], [np.nan, 1]]), [0, 1, 2], list("abc"), {})
  assert Store(tmp_path).finite().tolist() == [True, False, False]
  assert json.loads((tmp_path / "00000.json").read_text())["not_finite"] == [1, 2]


@pytest.mark.parametrize("memory", [0, None])
def test_points_from_disk_are_those_in_memory(inputs, store, mesh, memory):
  whole = ArrayPoints(inputs.POINTS[kept()].astype("f2"), mesh)
  points = StorePoints(store, mesh, memory=memory)
  assert points.sizes() == [98, 98, 49] and points.rows == 245
  assert [chunk.start for chunk in points.chunks()] == [0, 98, 196]
  assert [chunk.start for chunk in points.chunks(2)] == [196]
  assert len({chunk.x.shape for chunk in points.chunks()}) == 1
  same = next(points.chunks()).x is next(points.chunks()).x
  assert same == (memory is None)  # what fits stays on the devices
  init = inputs.POINTS[:9]
  results = [kmeans.lloyd(p, init, 5) for p in (points, whole)]
  np.testing.assert_allclose(*results, atol=1e-5)
  np.testing.assert_array_equal(*(kmeans.assign(p, results[0]).cluster for p in (points, whole)))


def test_some_rows_alone(inputs, store, mesh):
  rows = np.array([0, 5, 97, 200, 244])
  points = StorePoints(store, mesh, rows)
  assert points.sizes() == [3, 2] and points.rows == 5
  expected = inputs.POINTS[kept()[rows]].astype("f2")
  np.testing.assert_array_equal(
    np.concatenate([fetch(chunk.x)[:chunk.rows] for chunk in points.chunks()]), expected)
  np.testing.assert_array_equal(points.take(np.array([4, 1])), expected[[4, 1]])
  assert points.finite().tolist() == [True] * 5
