"""Decoding: modes, depth, transparency, orientation, limits and damage."""

import errno
import fcntl
import io
import pickle
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from dinov3_jax.data import decode as module
from dinov3_jax.data.decode import DamagedImage, Decoder, decode


def encoded(image, format_="PNG", **options):
  data = io.BytesIO()
  image.save(data, format_, **options)
  return data.getvalue()


def chunk(kind, data):
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, *more):
  """A PNG from its raw rows; Pillow cannot write all that it reads."""
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *more,
                   chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


GREY16 = np.array([[0, 255, 256, 4095], [4096, 32768, 65280, 65535]], np.uint16)


def test_gives_rgb_whatever_the_mode():
  for mode in ("L", "P", "RGBA", "CMYK", "1", "LA"):
    data = encoded(Image.new("RGB", (5, 4), "white").convert(mode),
                   "JPEG" if mode == "CMYK" else "PNG")
    image = decode(data, mode)
    assert image.shape == (4, 5, 3) and image.dtype == np.uint8 and (image > 250).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "La", "RGB", "RGBA", "RGBa", "CMYK",
                                  "YCbCr", "HSV"])
def test_pillow_images_of_any_mode_keep_their_colours(mode):
  ramp = np.linspace(0, 255, 256).astype(np.uint8)[None].repeat(3, 0)
  image = Image.fromarray(ramp)
  steps = {"PA": ["P"], "La": ["LA"], "RGBa": ["RGBA"], "HSV": ["RGB"], "YCbCr": ["RGB"]}
  for step in [*steps.get(mode, []), mode]:
    image = image.convert(step)
  got = Decoder().rgb(image)
  expected = np.asarray(image.convert("L")) if mode in ("1", "P", "PA") else ramp
  assert np.abs(got.astype(int) - expected[..., None]).max() <= 3


@pytest.mark.parametrize("depth, expected", [
  ("high_byte", [[0, 0, 1, 15], [16, 128, 255, 255]]),
  (16, [[0, 0, 1, 15], [16, 128, 255, 255]]),
  (12, [[0, 15, 16, 255], [255, 255, 255, 255]]),
  ("range", [[0, 1, 1, 16], [16, 128, 254, 255]])])
def test_deep_greys(depth, expected):
  decoder = Decoder(depth=depth)
  for image in (Image.fromarray(GREY16), Image.fromarray(GREY16.astype(np.int32))):
    got = decoder.rgb(image)
    np.testing.assert_array_equal(got, np.array(expected)[..., None].repeat(3, 2))
    if image.mode != "I":  # Pillow writes no 32 bits
      np.testing.assert_array_equal(decoder(encoded(image), "x"), got)
  big_endian = Image.frombytes("I;16B", (4, 2), GREY16.astype(">u2").tobytes())
  np.testing.assert_array_equal(decoder.rgb(big_endian), got)


def test_deep_colours_are_their_high_bytes():
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in GREY16.repeat(3, 1))
  expected = (GREY16 >> 8).astype(np.uint8)
  got = decode(png(4, 2, 16, 2, rows), "colour")
  np.testing.assert_array_equal(got, expected[..., None].repeat(3, 2))
  with_alpha = np.stack([GREY16, np.full_like(GREY16, 65535)], -1).reshape(2, 8)
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in with_alpha)
  np.testing.assert_array_equal(decode(png(4, 2, 16, 4, rows), "grey and alpha"), got)


def test_floats():
  values = np.array([[0, 0.25], [0.5, 1]], np.float32)
  np.testing.assert_array_equal(Decoder().rgb(Image.fromarray(values))[..., 0],
                                [[0, 64], [128, 255]])
  spread = Decoder(depth="range")
  for factor, offset in ((1, 0), (400, -7), (1e-3, 2)):
    image = Image.fromarray(values * factor + offset)
    assert np.abs(spread.rgb(image)[..., 0] - [[0, 64], [127.5, 255]]).max() <= 1
  with pytest.raises(ValueError, match=r'lie in \[0, 400\], not \[0, 1\]; depth "range"'):
    Decoder().rgb(Image.fromarray(values * 400))
  with pytest.raises(ValueError, match="not finite"):
    spread.rgb(Image.fromarray(values + np.inf))
  assert not spread.rgb(Image.new("F", (3, 2), 5.0)).any()


def test_integers_beyond_16_bits():
  image = Image.fromarray(np.array([[-5, 70_000]], np.int32))
  with pytest.raises(ValueError, match=r"lie in \[-5, 70000\], not in 16 bits; depth"):
    Decoder().rgb(image)
  assert Decoder(depth="range").rgb(image)[0, :, 0].tolist() == [0, 255]


def drawings():
  """A black square on a transparent black ground, stored in several ways."""
  image = Image.new("RGBA", (6, 6))
  image.paste((0, 0, 0, 255), (2, 2, 4, 4))
  palette = Image.new("P", (6, 6), 1)
  palette.putpalette([0, 0, 0, 0, 0, 0])
  palette.paste(0, (2, 2, 4, 4))
  grey = Image.new("L", (6, 6), 7)
  grey.paste(0, (2, 2, 4, 4))
  return dict(RGBA=encoded(image), LA=encoded(image.convert("LA")),
              P=encoded(palette, transparency=1), L=encoded(grey, transparency=7),
              RGB=encoded(Image.merge("RGB", [grey] * 3), transparency=(7, 7, 7)),
              webp=encoded(image, "WEBP", lossless=True, exact=True))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "L", "RGB", "webp"])
def test_transparency_is_dropped_or_shows_the_background(kind):
  data = drawings()[kind]
  assert decode(data, "x").max() <= 7
  for colour, rgb in (("white", (255, 255, 255)), ("#ff8000", (255, 128, 0))):
    got = Decoder(background=colour)(data, "x")
    assert (got[0, 0] == rgb).all() and (got[5, 5] == rgb).all() and not got[2:4, 2:4].any()
  opaque = Image.new("RGB", (3, 3), (10, 20, 30))
  assert (Decoder(background="white")(encoded(opaque), "x") == (10, 20, 30)).all()


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("band", [2**22, 8])
def test_photographs_are_turned_upright(orientation, band, monkeypatch):
  monkeypatch.setattr(module, "BAND", band)
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8))
  exif = Image.Exif()
  if orientation:
    exif[0x0112] = orientation
  data = encoded(image, exif=exif)
  expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
  got = decode(data, "x")
  np.testing.assert_array_equal(got, expected)
  assert got.flags.c_contiguous
  with Image.open(io.BytesIO(data)) as opened:
    np.testing.assert_array_equal(Decoder().rgb(opened), expected)


def odd_exif(orientation):
  """EXIF whose orientation is right and whose other tag is a fraction with no denominator and a
  type that cannot be written back."""
  entries = struct.pack("<HHI4s", 0x0112, 3, 1, struct.pack("<HH", orientation, 0))
  entries += struct.pack("<HHI4s", 0x9286, 2, 900_000, b"\xff\xff\xff\xff")
  entries += struct.pack("<HHI4s", 0x8769, 4, 1, b"\xf0\xff\xff\x7f")  # an IFD beyond the end
  return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 3) + entries + b"\0\0\0\0"


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("exif", [odd_exif(6), odd_exif(99), b"Exif\0\0II*\0\xff\xff\xff\xff",
                                  b"Exif\0\0nonsense"])
def test_odd_metadata_is_no_damage(exif):
  data = encoded(Image.new("RGB", (8, 4), (200, 30, 30)), "JPEG", exif=exif)
  assert decode(data, "x").shape == ((8, 4, 3) if exif == odd_exif(6) else (4, 8, 3))


def test_orientation_alone_is_read(monkeypatch):
  # As where EXIF has a value that Pillow reads but cannot write.
  monkeypatch.setattr(Image.Exif, "tobytes", lambda *args: 1 / 0)
  exif = odd_exif(8)
  data = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
  assert decode(data, "x").shape == (8, 4, 3)


@pytest.mark.parametrize("metadata", [
  chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2_000_000)),
  chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 2_000_000)),
  chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x" * 2_000_000)),
  chunk(b"zTXt", b"Comment\0\0no zlib"), chunk(b"tEXt", b"a")[:-1] + b"!", chunk(b"iTXt", b"")])
def test_texts_of_a_png_are_no_damage(metadata, tmp_path):
  exif = chunk(b"eXIf", odd_exif(6)[6:])
  data = png(4, 2, 16, 0, b"\0" * 18, metadata, exif)
  assert decode(data, "x").shape == (4, 2, 3)
  (tmp_path / "x.png").write_bytes(data)
  assert decode(tmp_path / "x.png", "x").shape == (4, 2, 3)
  with pytest.raises(DamagedImage):
    decode(data[:-30], "x")


def test_too_many_pixels(monkeypatch):
  data = encoded(Image.new("L", (40, 30)))
  small = Decoder(max_pixels=1199)
  with pytest.raises(DamagedImage, match=r"40 x 30 = 1,200 pixels are more than max_pixels, 1,199; "
                     r"raise that \(data\.max_pixels in a recipe\)"):
    small(data, "x")
  with pytest.raises(ValueError, match="more than max_pixels"):
    small.rgb(Image.new("L", (40, 30)))
  assert Decoder(max_pixels=1200)(data, "x").shape == (30, 40, 3)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow would refuse 1,000
  for format_ in ("PNG", "JPEG"):
    assert decode(encoded(Image.new("RGB", (40, 30)), format_), "x").shape == (30, 40, 3)
  assert Image.MAX_IMAGE_PIXELS == 500


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
  inside, most = 0, 0
  started, real = threading.Barrier(4), Decoder._convert

  def convert(self, image):
    nonlocal inside, most
    inside += 1
    most = max(most, inside)
    event.wait(0.02)
    inside -= 1
    return real(self, image)

  event = threading.Event()
  monkeypatch.setattr(Decoder, "_convert", convert)
  data = encoded(Image.new("RGB", (40, 30)))

  def work(decoder):
    started.wait()
    decoder(data, "x")

  def run(decoder):
    nonlocal most
    most = 0
    threads = [threading.Thread(target=work, args=[decoder]) for _ in range(4)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return most

  assert run(Decoder(big_pixels=1199)) == 1
  assert run(Decoder(big_pixels=1200)) > 1


def test_other_processes_wait_too():
  data, done = encoded(Image.new("RGB", (40, 30))), threading.Event()
  decoder = Decoder(big_pixels=1)
  with open(module.__file__, "rb") as file:  # as another process would
    fcntl.flock(file, fcntl.LOCK_EX)
    thread = threading.Thread(target=lambda: decoder(data, "x") is not None and done.set())
    thread.start()
    assert not done.wait(0.1)
    assert decode(data, "x").shape == (30, 40, 3)  # small ones need not wait
  thread.join()
  assert done.is_set()


@pytest.mark.parametrize("make", [
  lambda whole: b"", lambda whole: b"GIF but not really", lambda whole: whole[: len(whole) // 2],
])
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_damage_is_named(make, format_):
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
  with pytest.raises(DamagedImage, match=r"cat\.jpg cannot be read") as error:
    decode(make(encoded(Image.fromarray(noise), format_)), "cat.jpg")
  assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_other_formats_are_read_as_pillow_does():
  assert decode(encoded(Image.new("RGB", (5, 4), "red"), "BMP"), "x").shape == (4, 5, 3)


def test_a_file_that_is_missing(tmp_path):
  (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
  with pytest.raises(DamagedImage, match=r"^a\.png cannot be read: No such file or directory$"):
    decode(tmp_path / "link.png", "a.png")


def test_a_name_that_is_not_utf8_is_printable(tmp_path):
  name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
  with pytest.raises(DamagedImage) as error:
    decode(tmp_path / name, name)
  assert str(error.value).startswith(r"caf\xe9.png cannot be read: ")
  assert str(error.value).encode() and "\n" not in str(error.value)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_a_machine_at_its_limits_is_no_damage(monkeypatch, error):
  def fail(*args):
    raise error

  monkeypatch.setattr(module, "open_image", fail)
  with pytest.raises(type(error)):
    decode(encoded(Image.new("L", (2, 2))), "x")


@pytest.mark.parametrize("wrong, message", [
  (dict(depth=7), "depth must be"), (dict(depth="low"), "depth must be"),
  (dict(background="whitish"), "no colour"), (dict(max_pixels=0), "max_pixels must"),
  (dict(big_pixels=-1), "big_pixels must")])
def test_settings_that_mean_nothing_are_errors(wrong, message):
  with pytest.raises(ValueError, match=message):
    Decoder(**wrong)
