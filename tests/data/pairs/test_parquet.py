import itertools

import pyarrow as pa
import pytest
from pyarrow import parquet

from dinov3_jax.data.order import BlockShuffle, order_of
from dinov3_jax.data.pairs import open_pairs
from tests.data.conftest import below


def write(path, images, captions, name="caption", start=0, group=4):
  data = [p.read_bytes() for p in below(images).values()][start:start + len(captions)]
  parquet.write_table(pa.table({"image": data, name: captions}), path, row_group_size=group)


def test_strings_and_lists_of_them(tmp_path, images):
  write(tmp_path / "train-0.parquet", images, [f"number {i}" for i in range(6)])
  write(tmp_path / "train-1.parquet", images, [["a", "b"], ["c"], []], "Captions", start=6)
  pairs = open_pairs(tmp_path, "all")
  assert [pairs[i]["captions"] for i in range(8)] == [
    *([f"number {i}"] for i in range(6)), ["a", "b"], ["c"]]
  assert pairs.images.encoded(int(pairs.chosen[7])) == list(below(images).values())[7].read_bytes()


def test_groups_are_read_together_in_training(tmp_path, images):
  captions = [None if i % 5 == 0 or i in (4, 6, 7) else str(i) for i in range(40)]
  write(tmp_path / "x.parquet", images, captions, group=2)
  pairs = open_pairs(f"parquet:{tmp_path}/x.parquet", "all")
  starts = pairs.blocks
  assert starts[0] == 0 and starts[-1] == len(pairs) and (starts[1:] > starts[:-1]).all()
  for first, end in itertools.pairwise(starts):
    groups = {int(pairs.captions[i][0]) // 2 for i in range(first, end)}
    assert len(groups) == 1
  assert isinstance(order_of(pairs, 0), BlockShuffle)


def test_what_is_no_caption_is_counted(tmp_path, images, caplog):
  write(tmp_path / "x.parquet", images, [["a", None], ["  "], None])
  pairs = open_pairs(tmp_path, "all")
  assert len(pairs) == 1 and pairs[0]["captions"] == ["a"]
  assert ("left out 1 captions that are no text, 1 empty captions, 2 images without a caption"
          ) in caplog.text


def test_a_column_of_captions_is_needed(tmp_path, images):
  write(tmp_path / "x.parquet", images, [1, 2])
  with pytest.raises(ValueError, match=r"no column of captions: .*it has image, caption"):
    open_pairs(tmp_path, "all")
