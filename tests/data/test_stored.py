"""Images of a source in place of paths."""

import json
import os
import shutil

import fsspec
import numpy as np

from dinov3_jax import features
from dinov3_jax.data.decode import decode
from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.data.sources import open_source
from dinov3_jax.data.stored import Stored
from tests.data.conftest import below


def test_it_is_a_name_that_decoders_read(same, images):
  source = open_source(same("tar"), "all")
  stored = Stored.of("x.tar", source, 3)
  assert stored == "x.tar/a/06.png" and os.fspath(stored) is stored
  path = images / "a" / "06.png"
  np.testing.assert_array_equal(decode(stored, stored), decode(path, "x"))
  np.testing.assert_array_equal(Preprocess(size=16)(stored), Preprocess(size=16)(path))
  assert stored.mark()[0] == os.path.getsize(same("tar"))


def test_the_command_for_features_finds_them(same, images):
  spec = same("zip")
  found = features.find_images([spec, str(images / "a" / "00.png")])
  assert found == [f"{spec}/{name}" for name in below(images)] + [f"{images}/a/00.png"]


class Cameras:
  """Six pictures of two cameras, which number theirs from 0."""

  def __len__(self):
    return 6

  def name(self, index):
    return ["0.jpg", "1.jpg", "only.jpg", "0.jpg", "1.jpg", "0.jpg"][index]


def test_images_that_share_a_name_are_told_apart(monkeypatch):
  found = Stored.several("x", Cameras())
  assert found == ["x/00000000-0.jpg", "x/00000001-1.jpg", "x/only.jpg", "x/00000003-0.jpg",
                   "x/00000004-1.jpg", "x/00000005-0.jpg"]
  assert [image.index for image in found] == list(range(6))
  assert Stored.several("x", Cameras(), np.array([2, 5, 4])) == ["x/only.jpg", "x/0.jpg", "x/1.jpg"]
  monkeypatch.setattr("dinov3_jax.data.sources.open_source", lambda *_: Cameras())
  assert len(features.find_images(["openmoji"])) == 6


def test_an_image_that_is_replaced_has_another_mark(tmp_path, images):
  """In lists of files, of a bucket's files, over a folder and over a bucket, and in mixtures."""
  shutil.copytree(images, tmp_path / "images")
  path = tmp_path / "images" / "a" / "00.png"
  fs = fsspec.filesystem("memory")
  fs.pipe("/marks/a/00.png", path.read_bytes())
  names = {"files": "images/a/00.png", "objects": "memory://marks/a/00.png", "over": "a/00.png"}
  for name, line in names.items():
    (tmp_path / f"{name}.txt").write_text(line + "\n")
  parts = [dict(name="part", source=str(tmp_path / "images"), split="all", list=None, images=40,
                homogeneous=False, probability=1.0)]
  (tmp_path / "mix.json").write_text(json.dumps(dict(format=1, sources=parts)))
  specs = [str(tmp_path / "images"), str(tmp_path / "mix.json"), "memory://marks",
           *(f"manifest:{tmp_path / name}.txt" for name in ("files", "objects")),
           f"manifest:{tmp_path / 'over.txt'}::{tmp_path / 'images'}",
           f"manifest:{tmp_path / 'over.txt'}::memory://marks"]
  marks = lambda: [Stored.of(spec, open_source(spec, "all"), 0).mark() for spec in specs]
  before = marks()
  assert (-1, -1) not in before and marks() == before
  path.write_bytes((images / "b" / "01.png").read_bytes())
  fs.pipe("/marks/a/00.png", path.read_bytes())
  assert not {i for i, (old, new) in enumerate(zip(before, marks())) if old == new}


def test_the_mark_of_content_where_no_file_is_known():
  class Bytes:
    def name(self, index):
      return str(index)

    def encoded(self, index):
      return [b"one", b"two"][index]

  marks = [Stored.of("x", Bytes(), i).mark() for i in (0, 0, 1, 2)]
  assert marks[0] == marks[1] != marks[2] and marks[3] == (-1, -1)
