"""JPEGs by simplejpeg: bit for bit Pillow's, or left to Pillow."""

import io
import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from dinov3_jax.data import jpeg
from dinov3_jax.data.crops import MultiCrop
from dinov3_jax.data.decode import Decoder, decode

pytest.importorskip("simplejpeg")


def encoded(size=(117, 89), mode="RGB", **options):
  rng = np.random.default_rng(0)
  image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size, 3)
  data = io.BytesIO()
  image.convert(mode).save(data, "JPEG", **options)
  return data.getvalue()


def by_pillow(data):
  return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("options", [
  dict(quality=90), dict(quality=97, subsampling=0), dict(subsampling=1), dict(progressive=True),
  dict(mode="L"), dict(keep_rgb=True), dict(optimize=True)], ids=str)
def test_pixels_are_those_of_pillow(options):
  data = encoded(**options)
  np.testing.assert_array_equal(jpeg.pixels(data, 2**20), by_pillow(data))
  np.testing.assert_array_equal(decode(data, "x"), by_pillow(data))


def test_what_is_left_to_pillow():
  exif = Image.Exif()
  exif[0x0112] = 6
  data = encoded()
  junk = data[:400] + b"\xff\xd9" + data[402:]
  cut = data[: len(data) // 2]
  for other in (encoded(exif=exif), encoded(mode="CMYK"), cut, junk, b"", b"RIFF"):
    assert jpeg.pixels(other, 2**20) is None
  assert jpeg.pixels(data, 117 * 89 - 1) is None
  assert decode(encoded(exif=exif), "x").shape == (117, 89, 3)


def segment(marker, body):
  return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def oriented(number):
  exif = Image.Exif()
  exif[0x0112] = number
  return segment(0xE1, exif.tobytes())


XMP = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'


@pytest.mark.parametrize("metadata", [
  segment(0xED, bytes(10_000)) + oriented(6), segment(0xE2, bytes(60_000)) * 3 + oriented(6),
  segment(0xFE, b"\xff\xda" * 3000) + b"\xff" * 3 + oriented(6), segment(0xE1, XMP),
  segment(0xED, bytes(10_000)) + b"junk" + oriented(6),
], ids=["10 kB before", "180 kB before", "padded", "XMP", "junk"])
def test_an_orientation_is_found_behind_whatever_precedes_it(metadata):
  plain = encoded()
  data = plain[:2] + metadata + plain[2:]
  upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
  assert upright.shape == (117, 89, 3)
  assert jpeg.pixels(data, 2**20) is None
  np.testing.assert_array_equal(decode(data, "x"), upright)


def test_other_metadata_is_passed_over():
  plain = encoded()
  metadata = segment(0xED, b"Exif\0\0" * 2000) + segment(0xE1, XMP.replace(b"Orient", b"Or"))
  data = plain[:2] + metadata + plain[2:] + oriented(6)
  np.testing.assert_array_equal(jpeg.pixels(data, 2**20), by_pillow(plain))
  np.testing.assert_array_equal(ImageOps.exif_transpose(Image.open(io.BytesIO(data))),
                                by_pillow(plain))


@pytest.mark.parametrize("least", [30, 60, 100, 1000])
def test_images_become_smaller_while_they_stay_large_enough(least):
  size = (800, 600)
  data = encoded(size)
  small = Decoder(least_side=least)(data, "x")
  root = math.sqrt(small.shape[0] * small.shape[1])
  full = math.sqrt(size[0] * size[1])
  assert root >= min(least, full)
  assert root <= max(least, full / 8) + full / 8 or least > full  # by steps of an eighth
  averaged = np.asarray(Image.fromarray(by_pillow(data)).resize(small.shape[1::-1], Image.BOX))
  assert np.abs(small.astype(int) - averaged).mean() < 2


@pytest.mark.parametrize("resizer", ["exact", "fast"])
def test_crops_of_a_smaller_image_are_those_of_the_full_one(resizer):
  data = encoded((800, 600))
  full, small = Decoder()(data, "x"), Decoder(least_side=170)(data, "x")
  assert small.full == (600, 800) and small.shape == (150, 200, 3) and not hasattr(full, "full")
  crop = MultiCrop(48, 32, patch_size=8, color_strength=0.0, resizer=resizer)
  for seed in range(5):
    ours, theirs = (crop(image, np.random.default_rng(seed)) for image in (small, full))
    for name in ours:
      square = ((ours[name].astype(float) - theirs[name])**2).mean()
      assert 10 * np.log10(255**2 / square) > 45
