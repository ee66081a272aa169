"""Packing: the same images, going on after a stop, what is shrunk, and what is left as it is."""

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data import packing
from dinov3_jax.data.packing import Encoding, pack
from dinov3_jax.data.sources import open_source


def test_splits_names_and_labels_stay(tmp_path, images):
  seen = []
  result = pack(images, tmp_path / "out", images_per_shard=7, progress=lambda *x: seen.append(x))
  assert result.images == 40 and result.bytes_before == result.bytes_after and not result.left_out
  assert seen[0] == (0, 40) and seen[-1] == (40, 40)
  for split in ("train", "val", "test"):
    ours, theirs = open_source(tmp_path / "out", split), open_source(images, split)
    assert [ours.name(i) for i in range(len(ours))] == [theirs.name(i) for i in range(len(theirs))]
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert ours.classes == theirs.classes and ours.encoded(0) == theirs.encoded(0)
  for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines():
    digest, name = line.split("  ")
    assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest


def content(spec, split):
  """Names and bytes of a split; none where there is none."""
  try:
    source = open_source(spec, split)
  except ValueError as error:
    assert "no image for the split" in str(error)
    return []
  return [(source.name(i), source.encoded(i)) for i in range(len(source))]


@pytest.mark.parametrize("folders", [("train", "val"), ("train",), ()],
                         ids=["train and val", "train alone", "no splits"])
@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_a_pack_of_a_split_is_read_as_that_split(tmp_path, split, folders):
  """Nothing is held out of it a second time, and a pack without train trains nothing."""
  for i in range(100):
    for folder in folders or ("",):
      path = tmp_path / "in" / folder / "ab"[i % 2] / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new("L", (4, 4), i).save(path)
  pack(tmp_path / "in", tmp_path / "out", split=split, images_per_shard=40)
  for name in ("train", "val", "test"):
    expected = content(tmp_path / "in", name) if split in (name, "all") else []
    assert content(tmp_path / "out", name) == expected
  assert {json.loads(path.read_text())["split"] for path in (tmp_path / "out").glob("*d.json")} == {
    name for name in ("train", "val", "test") if content(tmp_path / "out", name)}


def test_packs_of_the_first_version_tell_their_split_by_their_names(tmp_path, images):
  for split in ("train", "val"):
    pack(images, tmp_path / split, split=split)
    for path in (tmp_path / split).glob("*d.json"):
      notes = json.loads(path.read_text())
      del notes["split"]
      path.write_text(json.dumps(notes))
    for name in ("train", "val", "test"):
      assert content(tmp_path / split, name) == (content(images, name) if name == split else [])


def test_it_goes_on_where_it_was_stopped(tmp_path, images, monkeypatch):
  whole = pack(images, tmp_path / "whole", images_per_shard=5, split="train")
  written, real = [], packing._write_shard

  def stopped(*args):
    if len(written) == 3:
      raise KeyboardInterrupt
    written.append(args[-1])
    return real(*args)

  monkeypatch.setattr(packing, "_write_shard", stopped)
  with pytest.raises(KeyboardInterrupt):
    pack(images, tmp_path / "out", images_per_shard=5, split="train")
  monkeypatch.setattr(packing, "_write_shard",
                      lambda *args: written.append(args[-1]) or real(*args))
  first = sorted((tmp_path / "out").glob("*.array_record"))[0]
  first.write_bytes(b"cut")  # is made again
  result = pack(images, tmp_path / "out", images_per_shard=5, split="train")
  assert len(written) == whole.shards + 1 and result.images == whole.images
  for name in ("SHA256SUMS", "pack.json"):
    assert (tmp_path / "out" / name).read_text() == (tmp_path / "whole" / name).read_text()
  with pytest.raises(ValueError, match=r"has the beginning of another job .its images_per_shard"):
    pack(images, tmp_path / "out", images_per_shard=6, split="train")


def test_processes_make_the_same_files(tmp_path, images):
  sums = []
  for workers in (1, 2):
    pack(images, tmp_path / str(workers), images_per_shard=20, split="train", workers=workers)
    sums.append((tmp_path / str(workers) / "SHA256SUMS").read_text())
  assert sums[0] == sums[1]


def encoded(image, kind, **options):
  data = io.BytesIO()
  image.save(data, kind, **options)
  return data.getvalue()


def test_what_becomes_of_an_image():
  large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
  size = lambda data: Image.open(io.BytesIO(data)).size
  jpeg, png = encoded(large, "JPEG", quality=100), encoded(large, "PNG")
  shrink = Encoding(shorter=40, quality=80)
  assert size(shrink(jpeg, "x")) == (60, 40) and shrink(png, "x")[:2] == b"\xff\xd8"
  assert Encoding(shorter=60)(png, "x") is png and Encoding()(b"no image", "x") == b"no image"
  again = Encoding(all=True, quality=50)
  assert size(again(jpeg, "x")) == (90, 60) and len(again(jpeg, "x")) < len(jpeg)
  assert again(encoded(large, "JPEG", quality=10), "x") == encoded(large, "JPEG", quality=10)
  deep = encoded(Image.fromarray(np.full((60, 90), 40_000, np.uint16)), "PNG")
  clear = encoded(Image.new("RGBA", (90, 60)), "PNG")
  for data in (deep, clear):
    assert shrink(data, "x") is data and again(data, "x") is data
  with pytest.raises(ValueError, match="from 1 to 100, not 0 and 101"):
    Encoding(quality=101)


def test_damaged_images_are_left_out_and_named(tmp_path):
  for i in range(4):
    (tmp_path / "in" / "a").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (50, 50)).save(tmp_path / "in" / "a" / f"{i}.png")
  (tmp_path / "in" / "a" / "1.png").write_bytes(b"broken")
  result = pack(tmp_path / "in", tmp_path / "out", split="train", encoding=Encoding(shorter=20))
  assert result.images == 3 and list(result.left_out) == ["a/1.png"]
  assert result.bytes_after != result.bytes_before


@pytest.fixture
def own(tmp_path):
  """A folder of 20 images in two classes, which may be changed."""
  for i in range(20):
    path = tmp_path / "in" / "ab"[i // 10] / f"{i:02}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), i).save(path)
  return tmp_path / "in"


def pack_in_eights(own, spared=None, monkeypatch=None):
  """Packs, and is stopped after so many shards."""
  count, real = 0, packing._write_shard

  def stopped(*args):
    nonlocal count
    count += 1
    if spared is not None and count > spared:
      raise KeyboardInterrupt
    return real(*args)

  if monkeypatch is None:
    return pack(own, own.parent / "out", split="all", images_per_shard=8)
  with monkeypatch.context() as patch:
    patch.setattr(packing, "_write_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
      pack_in_eights(own)


def test_it_does_not_go_on_with_other_images(own, monkeypatch):
  (own / "train").mkdir()
  for folder in ("a", "b"):
    (own / folder).rename(own / "train" / folder)
  pack_in_eights(own, 1, monkeypatch)
  first = own / "train" / "a" / "00.png"
  first.rename(own / "train" / "b" / "zz.png")
  with pytest.raises(ValueError, match=r"in has other images than before \(train/a/01.png where "
                     r"train/a/00.png was\): delete .*out, or take another --out"):
    pack_in_eights(own)
  (own / "train" / "b" / "zz.png").rename(first)
  first.write_bytes((own / "train" / "a" / "01.png").read_bytes())
  with pytest.raises(ValueError, match="in has images that have changed since they were read"):
    pack_in_eights(own)
  state = json.loads((own.parent / "out" / "pack.json").read_text())
  for shard in state["shards"].values():  # as the first version wrote it
    del shard["marks"]
  (own.parent / "out" / "pack.json").write_text(json.dumps(state))
  assert pack_in_eights(own).images == 20


def test_images_that_cannot_be_reached_are_not_left_out(own, monkeypatch):
  """A folder is away from the second shard on."""
  pack_in_eights(own, 1, monkeypatch)
  real = packing._write_shard

  def away(*args):
    (own / "b").rename(own.parent / "away")
    return real(*args)

  with monkeypatch.context() as patch:
    patch.setattr(packing, "_write_shard", away)
    with pytest.raises(OSError, match=r"b/1[0-9].png cannot be reached .* its folder is away"):
      pack_in_eights(own)
  (own.parent / "away").rename(own / "b")
  result = pack_in_eights(own)
  assert result.images == 20 and not result.left_out
  for name in ("train", "val", "test"):
    assert content(own.parent / "out", name) == content(own, name)


def test_images_that_were_damaged_are_packed_once_they_can_be_read(own, monkeypatch):
  path = own / "a" / "02.png"
  path.unlink()
  path.symlink_to(own / "later.txt")
  assert list(pack_in_eights(own).left_out) == ["a/02.png"]
  written, real = [], packing._write_shard
  monkeypatch.setattr(packing, "_write_shard",
                      lambda *args: written.append(args[-1]) or real(*args))
  assert list(pack_in_eights(own).left_out) == ["a/02.png"] and not written
  (own / "later.txt").write_bytes((own / "a" / "03.png").read_bytes())
  assert not pack_in_eights(own).left_out and len(written) == 1
  for name in ("train", "val", "test"):
    assert content(own.parent / "out", name) == content(own, name)


def test_a_shard_whose_names_are_gone_is_made_again(own):
  pack_in_eights(own)
  gone = list((own.parent / "out").glob("train*d.json"))
  for path in gone:
    path.unlink()
  pack_in_eights(own)
  assert gone and all(path.exists() for path in gone)
  assert content(own.parent / "out", "train") == content(own, "train")
