"""The settings of `config.data` reach the decoder and the mixture."""

import math

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
  assert {key: config.data[key] for key in DECODING} | {"least_side": 0.0} == vars(Decoder())


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


def labelled(folder, count):
  for i in range(count):
    path = folder / "train" / "ab"[i % 2] / f"{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 5), (i, 0, 0)).save(path)
  return str(folder)


def test_several_sources(config, tmp_path):
  first, second = labelled(tmp_path / "1", 40), labelled(tmp_path / "2", 30)
  with config.unlocked():
    config.data.sources = dict(one=dict(source=first, weight=3.0),
                               two=dict(source=second, weight=1.0),
                               alone=dict(source=second, homogeneous=True, weight=0.1))
  source = open_images(config, "train")
  found = [(m.name, m.homogeneous, round(m.probability, 3)) for m in source.members]
  assert found == [("alone", True, 0.1), ("one", False, 0.75), ("two", False, 0.25)]  # by name
  assert source.classes == ["a", "b"] and (source.labels[:5] >= 0).all()
  held_out = open_images(config, "val")
  assert len(held_out) + len(source.members[0].source) == 30
  with config.unlocked():
    config.data.sources.two.wieght = 2.0
  with pytest.raises(ValueError, match=r"data\.sources\.two has wieght, which is no setting of"):
    open_images(config, "train")


def test_photographs_become_smaller_for_training_alone(config, tmp_path):
  pytest.importorskip("simplejpeg")
  for split in ("train", "val"):
    (tmp_path / "large" / split).mkdir(parents=True)
    Image.new("RGB", (640, 480)).save(tmp_path / "large" / split / "x.jpg")
  config.data.source = str(tmp_path / "large")
  config.crops.update(global_sizes=(32,), local_sizes=(16,))
  config.data.scaled_decoding = True
  assert open_images(config, "val")[0]["image"].shape == (480, 640, 3)
  height, width, _ = open_images(config, "train")[0]["image"].shape
  # The smallest local window: 5 % of the area, in the aspect of 3 to 4.
  assert 16 <= math.sqrt(0.05 * height * width * 3 / 4) < 32
