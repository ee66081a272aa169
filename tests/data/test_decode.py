"""Decoding: modes, orientation and damage."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.decode import DamagedImage, decode


def encoded(image, **options):
  data = io.BytesIO()
  image.save(data, **options)
  return data.getvalue()


def test_decode_gives_rgb_whatever_the_mode():
  for mode in ("L", "P", "RGBA", "CMYK", "1", "LA"):
    data = encoded(Image.new("RGB", (5, 4), "white").convert(mode),
                   format="JPEG" if mode == "CMYK" else "PNG")
    image = decode(data, mode)
    assert image.shape == (4, 5, 3) and image.dtype == np.uint8 and (image > 250).all()


def test_decode_turns_photographs_upright():
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned: rows are columns
  wide = Image.new("RGB", (8, 4))
  assert decode(encoded(wide, format="JPEG", exif=exif), "x").shape == (8, 4, 3)


@pytest.mark.parametrize("make", [
  lambda whole: b"", lambda whole: b"GIF but not really", lambda whole: whole[: len(whole) // 2],
])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_damage_is_named(make, format_):
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
  with pytest.raises(DamagedImage, match=r"cat\.jpg cannot be read") as error:
    decode(make(encoded(Image.fromarray(noise), format=format_)), "cat.jpg")
  assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
