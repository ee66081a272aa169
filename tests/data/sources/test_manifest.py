"""Lists of images, over files and over other sources."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from dinov3_jax.data.sources import DamagedImage, open_source
from tests.data.conftest import below


def test_columns_of_text(tmp_path, images):
  path = tmp_path / "list.tsv"
  path.write_text(f"split\tlabel\tpath\nval\tdog\t{images}/a/00.png\ntrain\tcat\t{images}/b/01.png\n"
                  f"\ntrain\t\t{images}/b/03.png\n")
  train = open_source(f"manifest:{path}", "train")
  assert train.classes == ["cat", "dog"] and train.labels.tolist() == [0, -1]
  assert train.encoded(0) == (images / "b" / "01.png").read_bytes()
  assert len(open_source(f"manifest:{path}", "val")) == 1
  assert len(open_source(f"manifest:{path}", "all")) == 3


def test_one_column_and_numbers(tmp_path, images):
  (tmp_path / "plain.txt").write_text("".join(f"{path}\n" for path in below(images).values()))
  plain = open_source(f"manifest:{tmp_path}/plain.txt", "all")
  assert len(plain) == 40 and plain.labels is None and plain.classes is None
  (tmp_path / "numbers.csv").write_text("".join(f"{path},{i % 12}\n" for i, path in enumerate(
    below(images).values())))
  source = open_source(f"manifest:{tmp_path}/numbers.csv", "all")
  assert source.classes == [str(i) for i in range(12)]
  assert source.labels.tolist() == [i % 12 for i in range(40)]


def test_parquet_over_another_source(tmp_path, same, images):
  names = ["b/01.png", "a/00.png", "b/01.png"]
  parquet.write_table(pa.table({"file_name": names, "label": ["x", "y", "x"]}),
                      tmp_path / "list.parquet")
  source = open_source(f"manifest:{tmp_path}/list.parquet::{same('zip')}", "all")
  assert [source.name(i) for i in range(3)] == names and source.classes == ["x", "y"]
  assert [source[i]["label"] for i in range(3)] == [0, 1, 0]
  assert source.encoded(1) == (images / "a" / "00.png").read_bytes()
  # Without labels of its own, those of what it is over.
  (tmp_path / "bare.csv").write_text("path\nb/01.png\n")
  assert open_source(f"manifest:{tmp_path}/bare.csv::{same('tar')}", "all").labels.tolist() == [1]


@pytest.mark.parametrize("text, message", [
  ("", "names no image"), ("label,split\n1,val\n", r"no column of paths .*; it has label, split"),
  ("path,split\na.png,holdout\n", "has the split holdout; splits are train, val, test"),
  ("path,label\na.png,1\nb.png,2,3\n", r"line 2 of .* has 3 columns, not the 2")])
def test_lists_that_make_no_sense(tmp_path, text, message):
  (tmp_path / "list.csv").write_text(text)
  with pytest.raises(ValueError, match=message) as error:
    open_source(f"manifest:{tmp_path}/list.csv", "all")
  assert "\n" not in str(error.value)


def test_what_a_list_names_but_is_not_there(tmp_path, same):
  (tmp_path / "list.csv").write_text("no.png,1\n")
  with pytest.raises(DamagedImage, match=r"no\.png cannot be read: No such file"):
    open_source(f"manifest:{tmp_path}/list.csv", "all").encoded(0)
  with pytest.raises(ValueError, match=r"names 1 images that its source does not have, the first "
                     r"of them no\.png"):
    open_source(f"manifest:{tmp_path}/list.csv::{same('tar')}", "all")
