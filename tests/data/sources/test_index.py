"""The index: order, splits, labels, and what is kept of it."""

import pickle

import pytest

from dinov3_jax.data.sources import index as module
from dinov3_jax.data.sources.index import Entry, Found, build, open_index, split_of_file


def made(files, *entries, **options):
  found = [Found([Entry(*entry) if isinstance(entry, tuple) else Entry(entry, 0, 0)
                  for entry in names]) for names in entries]
  return build(files, [None] * len(files), found, **options)


def names(index):
  return [index.name(i) for i in range(len(index))]


def test_order_and_names():
  index = made(["x", "y"], ["b/2", "a/1"], ["a/0", "caf\udce9"])
  assert names(index) == ["a/0", "a/1", "b/2", "caf\udce9"] and index.file.tolist() == [1, 0, 0, 1]
  kept = made(["x", "y"], ["b/2", "a/1"], ["a/0", "c"], by_name=False)
  assert names(kept) == ["b/2", "a/1", "a/0", "c"]


@pytest.mark.parametrize("path, split", [
  ("d/train-00000-of-00010.parquet", "train"), ("imagenet1k-validation-01.tar", "val"),
  ("s3://b/test/0001.tar", "test"), ("d/training_0.zip", "train"), ("d/shard-0001.tar", None),
  ("d/my-nice-train-set.tar", None), ("d/trainer.zip", None)])
def test_splits_in_the_names_of_files(path, split):
  assert split_of_file(path) == split


def test_files_are_splits_only_beside_one_to_train_on():
  index = made(["test.zip"], [f"{i}.png" for i in range(300)])
  assert set(index.split) == {0, 1, 2}  # held out by the names of the images
  index = made(["train-0", "test-0"], [f"{i}.png" for i in range(300)], ["x.png"])
  counts = [int((index.split == i).sum()) for i in range(3)]
  assert counts[2] == 1 and 3 < counts[1] < 40 and sum(counts) == 301


def test_files_that_say_their_split_are_that_and_nothing_is_held_out():
  found = [Found([Entry(f"train/{i}.png", 0, 0) for i in range(300)], split="val")]
  assert set(build(["train-0"], [None], found).split) == {1}
  found += [Found([Entry(f"{i}.png", 0, 0) for i in range(300)])]
  index = build(["x", "train-1"], [None] * 2, found)
  assert sorted(zip(index.file.tolist(), index.split.tolist())) == [(0, 1)] * 300 + [(1, 0)] * 300
  assert index.note == "the files say which split they are"


def test_folders_inside_are_splits_and_classes():
  index = made(["x.tar"], ["train/dog/1", "train/cat/2", "val/dog/3", "other/4"])
  assert index.classes == ["cat", "dog"] and "the folders train, val are splits" in index.note
  assert dict(zip(names(index), zip(index.split.tolist(), index.label.tolist()))) == {
    "other/4": (module.NO_SPLIT, -1), "train/cat/2": (0, 0), "train/dog/1": (0, 1),
    "val/dog/3": (1, 1)}


def test_labels_by_number_and_by_name():
  index = made(["x"], [("a", 0, 0, 2), ("b", 0, 0, 0), ("c", 0, 0, None)])
  assert index.classes == ["0", "1", "2"] and index.label.tolist() == [2, 0, -1]
  index = made(["x"], [("a", 0, 0, "10"), ("b", 0, 0, "9"), ("c", 0, 0, "cat")])
  assert index.classes == ["9", "10", "cat"] and index.label.tolist() == [1, 0, 2]


def test_an_index_is_mapped_and_travels_by_its_folder(tmp_path, own_cache):
  (tmp_path / "x").write_bytes(b"x")
  scan = lambda path: Found([Entry(f"{i}/{i}.png", i, 9) for i in range(5000)])
  index = open_index("kind", [str(tmp_path / "x")], scan)
  assert len(pickle.dumps(index)) < 500 and len(index) == 5000 and index.nbytes < 250_000
  assert names(pickle.loads(pickle.dumps(index))) == names(index)
  again = open_index("kind", [str(tmp_path / "x")], lambda path: pytest.fail("it is kept"))
  assert names(again) == names(index)


def test_a_damaged_index_and_a_cache_without_room(tmp_path, own_cache, monkeypatch, caplog):
  (tmp_path / "x").write_bytes(b"x")
  scan = lambda path: Found([Entry("a.png", 0, 9)])
  open_index("kind", [str(tmp_path / "x")], scan)
  for path in own_cache.rglob("ends.npy"):
    path.write_bytes(path.read_bytes()[:40])
  assert names(open_index("kind", [str(tmp_path / "x")], scan)) == ["a.png"]
  monkeypatch.setenv("DINOV3_JAX_CACHE", str(tmp_path / "x" / "no folder"))
  assert names(open_index("kind", [str(tmp_path / "x")], scan)) == ["a.png"]
  assert "set DINOV3_JAX_CACHE to a folder that can be written to" in caplog.text
