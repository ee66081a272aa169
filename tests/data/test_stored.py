"""Images of a source in place of paths."""

import os

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
  assert Stored.of("f", open_source(images, "all"), 0).mark() == (-1, -1)


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
