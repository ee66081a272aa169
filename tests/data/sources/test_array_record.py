"""ArrayRecord files that others have written, and that are not whole."""

import json
import os

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from dinov3_jax.data.sources import DamagedImage, open_source
from dinov3_jax.data.sources.example import serialize
from tests.data.conftest import below


def write(path, records):
  writer = ArrayRecordWriter(str(path), "group_size:1")
  for record in records:
    writer.write(record)
  writer.close()


def test_records_that_are_images_or_examples(tmp_path, images):
  data = [path.read_bytes() for path in below(images).values()][:2]
  write(tmp_path / "x.array_record-00000-of-00001",
        [data[0], serialize({"image/encoded": data[1], "label": 3}), b"neither",
         serialize({"text": b"words"})])
  source = open_source(f"{tmp_path}/x.array_record-00000-of-00001", "all")
  assert len(source) == 4 and source.labels is None and source.name(1) == "00000001"
  assert [source.encoded(i) for i in range(2)] == data
  for i, reason in ((2, "neither an image nor an example"), (3, "no image; it has text")):
    with pytest.raises(DamagedImage, match=f"0000000{i} cannot be read: .*{reason}"):
      source.encoded(i)


def test_names_that_were_packed_more_than_once(tmp_path, images):
  data = [path.read_bytes() for path in below(images).values()][:3]
  write(tmp_path / "x.array_record", data)
  (tmp_path / "x.array_record.json").write_text(json.dumps(dict(
    names=["0.jpg", "1.jpg", "0.jpg"], labels=[0, 0, 1], classes=["a", "b"])))
  source = open_source(tmp_path / "x.array_record", "all")
  assert [source.name(i) for i in range(3)] == ["00000000-0.jpg", "1.jpg", "00000002-0.jpg"]
  assert [source.encoded(i) for i in range(3)] == data


def test_files_that_are_not_whole(tmp_path, images):
  data = next(iter(below(images).values())).read_bytes()
  path = tmp_path / "x.array_record"
  write(path, [data] * 3)
  (tmp_path / "x.array_record.json").write_text('{"names": ["a"], "labels": [0], "classes": []}')
  with pytest.raises(ValueError, match=r"has 3 records, but .*json names 1: pack it again"):
    open_source(path, "train")
  (tmp_path / "x.array_record.json").write_text("{")
  with pytest.raises(ValueError, match=r"json is damaged .*: pack it again"):
    open_source(path, "train")
  os.truncate(path, 100)
  with pytest.raises(ValueError, match="is no whole ArrayRecord file") as error:
    open_source(path, "train")
  assert "\n" not in str(error.value)


def test_buckets_are_refused():
  with pytest.raises(ValueError, match="read from disks alone; copy them, or keep tars"):
    open_source("memory://x/a.array_record", "train")
