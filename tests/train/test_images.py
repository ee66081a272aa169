"""The settings of `config.data` reach the decoder."""

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.decode import Decoder
from dinov3_jax.train.images import DECODING, open_images


@pytest.fixture
def config(tiny_config, tmp_path):
  Image.fromarray(np.full((4, 6), 4095, np.uint16)).save(tmp_path / "deep.png")
  Image.new("RGBA", (4, 4)).save(tmp_path / "clear.png")
  tiny_config.data.source = str(tmp_path)
  return tiny_config


def read(config):
  source = open_images(config, "all")
  return [source[i]["image"].max() for i in range(2)]


def test_the_defaults_are_those_of_the_decoder(config):
  assert read(config) == [0, 15]
  assert {key: config.data[key] for key in DECODING} == vars(Decoder())


def test_settings_count(config):
  config.data.update(background="white", depth="12")
  assert read(config) == [255, 255]
  config.data.max_pixels = 20
  with pytest.raises(Exception, match="more than max_pixels, 20"):
    read(config)
  config.data.depth = "deep"
  with pytest.raises(ValueError, match="depth must be"):
    read(config)


def test_settings_of_an_older_run(config):
  with config.unlocked():
    for key in DECODING:
      del config.data[key]
  assert read(config) == [0, 15]
