import json

import pytest

from dinov3_jax.data.pairs import open_pairs, tar
from tests.data.conftest import below, write_tar


def image(images, i):
  return list(below(images).values())[i].read_bytes()


def test_lines_of_texts_and_keys_of_objects(tmp_path, images):
  write_tar(tmp_path / "a-train-0.tar", {
    "0.txt": b"a cat\na dog\n", "0.png": image(images, 0), "0.json": b'{"caption": "other"}',
    "sub/1.png": image(images, 1), "sub/1.json": b'{"captions": ["one", "two"], "width": 24}'})
  # The same names in another tar, and an object that is a list.
  write_tar(tmp_path / "a-train-1.tar", {
    "0.png": image(images, 2), "0.txt": b"ein Hund", "2.png": image(images, 3),
    "2.json": json.dumps(["three"]).encode()})
  pairs = open_pairs(tmp_path, "all")
  assert [pairs[i]["captions"] for i in range(4)] == [
    ["a cat", "a dog"], ["one", "two"], ["ein Hund"], ["three"]]
  assert pairs[2]["name"] == "a-train-1.tar/0.png" and pairs[0]["image"].shape == (20, 24, 3)
  assert pairs.blocks is None


def test_what_is_no_caption_is_counted(tmp_path, images, caplog):
  write_tar(tmp_path / "x.tar", {
    "0.png": image(images, 0), "0.txt": b"fine", "1.png": image(images, 1), "1.txt": b"\xff\xfe!",
    "2.png": image(images, 2), "2.json": b"{", "3.png": image(images, 3), "3.txt": b"",
    "4.png": image(images, 4), "4.json": b'{"width": 3}', "5.txt": b"gone\nwith the wind"})
  pairs = open_pairs(f"tar:{tmp_path}/x.tar", "all")
  assert len(pairs) == 1 and pairs[0]["captions"] == ["fine"]
  assert ("left out 2 captions that are no text, 2 captions without an image, 1 empty captions, "
          "4 images without a caption") in caplog.text


def test_only_tars_of_the_split_are_read(tmp_path, images, monkeypatch):
  for i, split in enumerate(("train", "val")):
    write_tar(tmp_path / f"{split}.tar", {"0.png": image(images, i), "0.txt": split.encode()})
  scanned, scan = [], tar.scan
  monkeypatch.setattr(tar, "scan", lambda path: scanned.append(path) or scan(path))
  assert open_pairs(tmp_path, "val")[0]["captions"] == ["val"]
  assert scanned == [str(tmp_path / "val.tar")]


def test_tars_without_captions(tmp_path, images):
  write_tar(tmp_path / "x.tar", {"0.png": image(images, 0)})
  with pytest.raises(ValueError, match=r"no image of .* has a caption \(1 images without"):
    open_pairs(tmp_path, "all")
