"""What is said of 16-bit and transparent images, and that nothing is said of others."""

import io

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.decode import Decoder
from dinov3_jax.data.sources.notes import SAMPLES, pixel_notes, spread


def encoded(image):
  data = io.BytesIO()
  image.save(data, "PNG")
  return data.getvalue()


def grey(greatest):
  return encoded(Image.fromarray(np.array([[0, greatest]], np.uint16)))


@pytest.mark.parametrize("greatest, depth, expected", [
  (4095, "high_byte", "4,095, of 12 bits: data.depth=12 keeps"),
  (4096, "high_byte", "4,096, of 13 bits: data.depth=13 keeps"),
  (60_000, 12, "60,000, of 16 bits: all above 4,095 becomes white"),
  (200, "high_byte", "200, of 8 bits: data.depth=8 keeps")])
def test_deep_images(greatest, depth, expected):
  note, = pixel_notes([b"no image", grey(7), grey(greatest)], Decoder(depth=depth))
  assert f"data.depth={depth}" in note and expected in note


def test_a_range_that_is_used_is_only_stated():
  note, = pixel_notes([grey(65_000)], Decoder())
  assert note.endswith("in a sample of images is 65,000")
  assert not pixel_notes([grey(4095)], Decoder(depth="range"))


def test_transparent_images(tmp_path):
  path = tmp_path / "x.png"
  path.write_bytes(encoded(Image.new("RGBA", (3, 3))))
  note, = pixel_notes([path], Decoder())
  assert "data.background=white" in note
  assert not pixel_notes([path], Decoder(background="white"))


def test_ordinary_images_need_no_note(tmp_path):
  assert not pixel_notes([encoded(Image.new("RGB", (3, 3))), tmp_path / "missing"], Decoder())


def test_samples_are_spread():
  assert spread(0) == [] and spread(3) == [0, 1, 2]
  assert len(spread(1000)) == SAMPLES and max(spread(1000)) >= 800
