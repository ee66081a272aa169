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
