"""WebDataset's tars: labels, shards, and tars that are not whole."""

import os
import pickle

import numpy as np
import pytest

from dinov3_jax.data.sources import open_source, tar
from tests.data.conftest import below, write_tar


def shard(path, images, start, count=4):
  """Samples as WebDataset writes them: 0007.png and 0007.cls."""
  data = [p.read_bytes() for p in below(images).values()]
  members = {}
  for i in range(start, start + count):
    members |= {f"{i:04}.png": data[i], f"{i:04}.cls": str(i % 3).encode(), f"{i:04}.txt": b"words"}
  write_tar(path, members)


def test_labels_of_samples_and_splits_of_files(tmp_path, images):
  for name, start in (("in-train-000", 0), ("in-train-001", 4), ("in-val-000", 8)):
    shard(tmp_path / f"{name}.tar", images, start)
  sizes = {split: len(open_source(tmp_path, split)) for split in ("train", "val", "all")}
  assert sizes == {"train": 8, "val": 4, "all": 12}
  source = open_source(f"{tmp_path}/in-train-{{000..001}}.tar", "all")
  assert source.classes == ["0", "1", "2"]
  assert source.labels.tolist() == [int(source.name(i)[:4]) % 3 for i in range(8)]
  with pytest.raises(ValueError, match=r"no image for the split 'test'.*train 8, val 4, test 0"):
    open_source(tmp_path, "test")


def test_names_that_shards_share_are_told_apart(tmp_path, images):
  for name in ("a", "b"):
    shard(tmp_path / f"{name}.tar", images, 0)
  source = open_source(tmp_path, "all")
  assert [source.name(i) for i in (0, 4)] == ["a.tar/0000.png", "b.tar/0000.png"]


@pytest.mark.parametrize("cut", [3000, 5000, 600])
def test_a_cut_tar_is_named_before_anything_is_read(tmp_path, images, cut):
  path = tmp_path / "x.tar"
  shard(path, images, 0)
  os.truncate(path, cut)
  with pytest.raises(ValueError, match=r"x\.tar is no whole tar .*copy it again") as error:
    open_source(path, "train")
  assert "\n" not in str(error.value)


def test_compressed_tars_are_refused_with_advice(tmp_path):
  for name, start, tool in (("x.tar.gz", b"\x1f\x8b", "gunzip"), ("y.tar", b"(\xb5/", "unzstd")):
    (tmp_path / name).write_bytes(start + bytes(600))
    with pytest.raises(ValueError, match=f"is compressed, .*unpack it first .`{tool} {name}`"):
      open_source(tmp_path / name, "train")


def test_an_index_is_made_once_and_again_when_its_tar_changes(tmp_path, images, monkeypatch):
  path, scanned, scan = tmp_path / "x.tar", [], tar.scan
  monkeypatch.setattr(tar, "scan", lambda path: scanned.append(path) or scan(path))
  shard(path, images, 0)
  old = open_source(path, "all")
  assert len(open_source(path, "all")) == 4 and len(scanned) == 1
  shard(path, images, 4, count=6)
  new = open_source(path, "all")
  assert len(scanned) == 2 and len(new) == 6
  with pytest.raises(OSError, match=r"x\.tar has changed since its index was made: start anew"):
    pickle.loads(pickle.dumps(old)).encoded(0)


def test_a_name_that_comes_again_replaces_the_one_before(tmp_path, images):
  first, second = list(below(images).values())[:2]
  import tarfile
  with tarfile.open(tmp_path / "x.tar", "w") as file:
    for path in (first, second):
      file.add(path, "./a/same.png")
    file.add(first, "a/.hidden.png")
  source = open_source(tmp_path / "x.tar", "all")
  assert len(source) == 1 and source.encoded(0) == second.read_bytes()
  np.testing.assert_array_equal(source.labels, [0])


def test_a_tar_without_images(tmp_path):
  write_tar(tmp_path / "x.tar", {"a.txt": b"words"})
  with pytest.raises(ValueError, match=r"no image in .*x\.tar"):
    open_source(tmp_path / "x.tar", "train")
