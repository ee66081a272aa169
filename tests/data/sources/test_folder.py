"""A folder: its classes, names, order and splits."""

import json
import logging
import os
import pickle
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.sources import DamagedImage, Decoder, open_source
from dinov3_jax.data.sources import folder as module
from dinov3_jax.data.sources.splits import hash_percent


def save(path, color=(10, 200, 30), size=(12, 9), **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, color).save(path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("images")
  for i in range(30):
    for kind, suffix in (("cat", "jpg"), ("dog", "PNG"), ("deep/er", "webp")):
      save(root / kind / f"{i:02}.{suffix}", color=(8 * i, 100, 100))
  save(root / "loose.jpeg")
  save(root / ".hidden" / "a.png")
  save(root / "cat" / "._b.png")
  (root / "cat" / "notes.txt").write_text("no image")
  return root


def test_folder_has_labels_names_and_order(folder):
  source = open_source(str(folder), "all")
  assert len(source) == 91 and source.classes == ["cat", "deep", "dog"]
  names = [source[i]["name"] for i in range(len(source))]
  assert names == sorted(names) and names[0] == "cat/00.jpg" and names[-1] == "loose.jpeg"
  item = source[31]
  assert item["name"] == "deep/er/01.webp" and item["label"] == 1
  assert item["image"].shape == (9, 12, 3) and item["image"].dtype == np.uint8
  assert np.abs(item["image"][0, 0].astype(int) - (8, 100, 100)).max() < 6
  assert source.labels.tolist() == [source[i]["label"] for i in range(len(source))]
  assert source[90]["label"] == -1
  assert pickle.loads(pickle.dumps(source))[5]["name"] == names[5]


def test_held_out_images_depend_on_their_path_alone(folder):
  splits = {split: open_source(folder, split) for split in ("train", "val", "test")}
  names = {split: {source[i]["name"] for i in range(len(source))}
           for split, source in splits.items()}
  assert sum(map(len, names.values())) == 91 == len(set.union(*names.values()))
  assert all(len(part) > 0 for part in names.values())
  for name in names["val"]:
    assert hash_percent(name) < 5
  assert all(source.classes == ["cat", "deep", "dog"] for source in splits.values())


def test_split_folders(tmp_path):
  for i in range(60):
    save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
  save(tmp_path / "extra" / "x.png")
  train, val = (open_source(tmp_path, split) for split in ("train", "val"))
  assert len(train) + len(val) == 60 and 0 < len(val) < 12
  assert train.classes == val.classes == ["a", "b"]

  save(tmp_path / "val" / "b" / "0.png")
  save(tmp_path / "val" / "c" / "0.png")
  train, val = (open_source(tmp_path, split) for split in ("train", "val"))
  assert (len(train), len(val)) == (60, 2)
  assert train.classes == val.classes == ["a", "b", "c"] and val.labels.tolist() == [1, 2]
  assert len(open_source(tmp_path, "all")) == 62
  with pytest.raises(ValueError, match=r"'test'.*has the splits train, val"):
    open_source(tmp_path, "test")


def test_folder_without_classes(tmp_path):
  save(tmp_path / "one.png")
  source = open_source(tmp_path, "all")
  assert source.labels is None and source.classes is None and source[0]["label"] == -1


@pytest.fixture
def told(monkeypatch, caplog):
  """What sources of folders say, though others may have been described before."""
  monkeypatch.setattr(module, "_told", set())
  caplog.set_level(logging.INFO, "dinov3_jax")
  return caplog


def test_a_class_called_train(tmp_path, told):
  for kind in ("bus", "car", "train", "tram"):
    for i in range(12):
      save(tmp_path / kind / f"{i}.png")
  source = open_source(tmp_path, "all")
  assert len(source) == 48 and source.classes == ["bus", "car", "train", "tram"]
  assert "48 images in 4 classes; no folders are splits" in told.text


@pytest.mark.parametrize("train, other, split", [
  ("train", "valid", "val"), ("Train", "Test", "test"), ("TRAINING", "dev", "val")])
def test_usual_spellings(tmp_path, train, other, split, told):
  for i in range(40):
    save(tmp_path / train / "ab"[i % 2] / f"{i}.png")
  for i in range(6):
    save(tmp_path / other / "ab"[i % 2] / f"{i}.png")
  held_out = open_source(tmp_path, split)
  assert {held_out[i]["name"].split("/")[0] for i in range(6)} == {other} and len(held_out) == 6
  learned = open_source(tmp_path, "train")
  assert {learned[i]["name"].split("/")[0] for i in range(len(learned))} == {train}
  assert held_out.classes == learned.classes == ["a", "b"]
  names = {f"{other} ({split})", "train" if train == "train" else f"{train} (train)"}
  said = re.search("46 images in 2 classes; the folders (.*) are splits", told.text)[1]
  assert set(said.split(", ")) == names


def test_what_is_left_out_is_said_once(tmp_path, told):
  for name in ("train/a/1.png", "val/a/2.png", "other/3.png", "loose.png"):
    save(tmp_path / name)
  for name in ("train/notes.txt", "val/b.GIF", "c.gif", "LICENSE"):
    (tmp_path / name).write_text("")
  open_source(tmp_path, "train")
  open_source(str(tmp_path), "val")
  assert told.text.count("2 images in 1 classes") == 1
  assert told.text.count(
    "left out 2 images in the folders other, and 2 .gif, 1 without a suffix, 1 .txt files") == 1
  assert [record.levelname for record in told.records] == ["INFO", "WARNING"]


def test_files_of_other_kinds_are_counted_where_there_is_no_image(tmp_path):
  (tmp_path / "a.tif").touch()
  with pytest.raises(ValueError, match=r"no image below .*, not its 1 \.tif files"):
    open_source(tmp_path, "all")


def test_a_split_without_class_folders_has_no_labels(tmp_path, told):
  for i in range(6):
    save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png")
    save(tmp_path / "val" / f"{i}.png")
  train, val = (open_source(tmp_path, split) for split in ("train", "val"))
  assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and train.classes == ["a", "b"]
  assert val.labels is None and val[0]["label"] == -1
  assert told.text.count("val has no labels") == 1 and "train has no labels" not in told.text


def test_linked_class_folders_and_cycles(tmp_path):
  root = tmp_path / "set"
  for i in range(24):
    save(tmp_path / "pool" / "ab"[i % 2] / f"{i}.png")
  root.mkdir()
  for name in "ab":
    (root / name).symlink_to(tmp_path / "pool" / name)
  (tmp_path / "pool" / "a" / "up").symlink_to(tmp_path)
  (tmp_path / "pool" / "b" / "up").symlink_to(root)
  source = open_source(root, "all")
  assert len(source) == 24 and source.classes == ["a", "b"]


def test_names_that_are_not_utf8(tmp_path, told):
  broken = os.fsdecode(b"caf\xe9")
  try:
    save(tmp_path / broken / f"{broken}.png", color=(1, 2, 3))
  except OSError:
    pytest.skip("this file system takes UTF-8 alone")
  save(tmp_path / "good" / "1.png")
  source = pickle.loads(pickle.dumps(open_source(tmp_path, "all")))
  item = source[0]
  assert item["name"] == r"caf\xe9/caf\xe9.png" and (item["image"] == (1, 2, 3)).all()
  assert source.classes == [r"caf\xe9", "good"]
  json.dumps([item["name"], source.classes])
  told.text.encode()
  (tmp_path / broken / f"{broken}.png").write_bytes(b"broken")
  with pytest.raises(DamagedImage) as error:
    source[0]
  assert r"caf\xe9/caf\xe9.png cannot be read" in str(error.value)
  str(error.value).encode()


def test_a_folder_that_vanishes_is_no_damage(tmp_path):
  save(tmp_path / "set" / "1.png")
  source = open_source(tmp_path / "set", "all")
  shutil.rmtree(tmp_path / "set")
  with pytest.raises(FileNotFoundError, match="set is not there any more"):
    source[0]


def test_the_decoder_is_used_and_its_losses_are_told(tmp_path, told):
  Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(tmp_path / "deep.png")
  assert open_source(tmp_path, "all")[0]["image"].max() == 15
  assert told.text.count("data.depth=12 keeps the most of them") == 1
  source = pickle.loads(pickle.dumps(open_source(tmp_path, "all", Decoder(depth=12))))
  assert source[0]["image"].min() == 255
