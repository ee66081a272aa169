"""Crops, predictions and depth files of any data set of depth."""

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import depth_maps
from dinov3_jax.evals.session import LayoutError


@pytest.fixture
def pair(tmp_path):
  """An image whose brightness is its depth."""
  metres = np.broadcast_to(np.linspace(2, 8, 160), (120, 160))
  Image.fromarray(np.repeat((25 * metres).astype(np.uint8)[..., None], 3, 2)).save(
      tmp_path / "a.png")
  Image.fromarray((1000 * metres).astype(np.uint16)).save(tmp_path / "depth.png")
  return tmp_path / "a.png", tmp_path / "depth.png"


@pytest.fixture
def data(pair):
  return depth_maps.DepthSet(
    [pair], [pair], lambda path: depth_maps.read_depth(path, 1000), 10.0, None,
    lambda height, width: ((11, 118, 10, 152), (104, 136)))


def test_depth_is_in_metres(pair, tmp_path):
  metres = depth_maps.read_depth(pair[1], 1000)
  assert metres.dtype == np.float32 and metres.min() == 2 and metres.max() == 8
  np.testing.assert_allclose(depth_maps.read_depth(pair[1], 256), metres * 1000 / 256)
  Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "grey.png")
  with pytest.raises(LayoutError, match="has the mode L: depth is a PNG of 16 bits"):
    depth_maps.read_depth(tmp_path / "grey.png", 1000)


def test_crops_keep_image_and_depth_together(data, pair, tmp_path):
  image, metres = data.load(pair)
  for seed in range(6):
    x, y = depth_maps.crop(data, image, metres, np.random.default_rng(seed), 8)
    assert x.shape == (104, 136, 3) and y.shape == (104, 136)
    np.testing.assert_allclose(x[..., 0], 25 * y, atol=1)
  Image.fromarray(image[:-1]).save(tmp_path / "cut.png")
  with pytest.raises(LayoutError, match=r"cut.png is of \(119, 160\) pixels, its depth of"):
    data.load((tmp_path / "cut.png", pair[1]))


def test_mirror_images_have_mirrored_depth(session_of):
  class Brightness:
    rates = np.ones(1)

    def outputs(self, tokens, head):
      return 50 * np.maximum(tokens, 0)[..., :1] * np.arange(4)

  session = session_of("DAVIS")
  session.run = lambda x: x[:, ::8, ::8]
  image = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)
  (found,) = depth_maps.predict(session, Brightness(), image, (16, 24), 10.0)
  (turned,) = depth_maps.predict(session, Brightness(), image[:, ::-1], (16, 24), 10.0)
  np.testing.assert_allclose(found, turned[:, ::-1], atol=1e-5)


def test_the_loss_is_of_depth_up_to_the_farthest():
  truth = np.array([[[5.0, 79.0], [81.0, 0.0]]], np.float32)
  outputs = np.random.default_rng(0).standard_normal((1, 2, 2, 8)).astype(np.float32)
  of_80, of_90 = (depth_maps.loss_of(far)(outputs, truth, 0) for far in (80.0, 90.0))
  assert np.isfinite(of_80) and of_80 != of_90
