"""Parquet: columns, labels, groups, and files that are not whole."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from pyarrow import parquet

from dinov3_jax.data.sources import DamagedImage, open_source
from dinov3_jax.data.sources import parquet as module
from tests.data.conftest import below, write_parquet


def test_row_groups_are_blocks_and_read_once(tmp_path, images, monkeypatch):
  write_parquet(tmp_path / "x.parquet", below(images), group=7)
  source, read = open_source(tmp_path / "x.parquet", "all"), []
  assert source.blocks.tolist() == [0, 7, 14, 21, 28, 35, 40]
  real = module._Reader._read
  monkeypatch.setattr(module._Reader, "_read",
                      lambda self, index, *key: read.append(key) or real(self, index, *key))
  source = pickle.loads(pickle.dumps(source))
  for i in (0, 5, 13, 1, 39):
    source.encoded(i)
  assert read == [(0, 0), (0, 1), (0, 5)]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts what Linux has open")
def test_few_files_are_open_at_once(tmp_path, images, monkeypatch):
  monkeypatch.setattr(module, "OPEN", 2)
  monkeypatch.setattr(module, "GROUPS", 3)
  names = list(below(images).items())[:24]
  for i in range(12):
    write_parquet(tmp_path / f"{i:02}.parquet", dict(names[2 * i : 2 * i + 2]), group=1)
  source = open_source(tmp_path / "*.parquet", "all")
  wanted = [path.read_bytes() for _, path in names]
  before = len(os.listdir("/proc/self/fd"))
  for i in (*range(24), *reversed(range(24)), 0, 6, 0, 12, 0, 1):
    assert source.encoded(i) == wanted[i]
    assert len(os.listdir("/proc/self/fd")) <= before + 2
  with ThreadPoolExecutor(8) as threads:
    assert list(threads.map(source.encoded, [*range(24)] * 4)) == wanted * 4
  assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_column_of_bytes_and_numbers_as_labels(tmp_path, images):
  data = [path.read_bytes() for path in below(images).values()][:3]
  parquet.write_table(pa.table({"jpg": [*data, b""], "cls": [4, 0, None, 1]}),
                      tmp_path / "x.parquet")
  source = open_source(tmp_path / "x.parquet", "all")
  assert source.classes == list("01234") and source.labels.tolist() == [4, 0, -1, 1]
  assert [source.name(i) for i in range(2)] == ["00000000", "00000001"]
  assert source.encoded(1) == data[1]
  with pytest.raises(DamagedImage, match="00000003 cannot be read: its row has no bytes"):
    source.encoded(3)


def test_files_that_cannot_be_read_are_one_line(tmp_path, images):
  parquet.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "x.parquet")
  with pytest.raises(ValueError, match=r"x\.parquet has no column of images: .*it has text, label"):
    open_source(tmp_path / "x.parquet", "train")
  write_parquet(tmp_path / "y.parquet", below(images))
  os.truncate(tmp_path / "y.parquet", 400)
  with pytest.raises(ValueError, match=r"y\.parquet is no whole parquet file") as error:
    open_source(tmp_path / "y.parquet", "train")
  assert "\n" not in str(error.value)


def test_a_file_that_changes_under_a_run(tmp_path, images):
  names = below(images)
  write_parquet(tmp_path / "x.parquet", names)
  source = pickle.loads(pickle.dumps(open_source(tmp_path / "x.parquet", "all")))
  write_parquet(tmp_path / "x.parquet", dict(list(names.items())[:9]))
  with pytest.raises(OSError, match="has changed since its index was made"):
    source.encoded(0)
