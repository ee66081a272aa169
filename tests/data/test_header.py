"""Images of more than 8 bits or four channels: known by their headers, carried, and not decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.decode import DamagedImage, decode
from dinov3_jax.data.header import Held, held
from dinov3_jax.data.packing import Encoding, pack
from dinov3_jax.data.sources import open_source


def png(mode: str) -> bytes:
  data = io.BytesIO()
  Image.new(mode, (60, 50)).save(data, "PNG")
  return data.getvalue()


def deep_png(pixels: np.ndarray) -> bytes:
  """Of uint16 [H, W, 3], which Pillow does not write."""
  height, width = pixels.shape[:2]
  part = lambda kind, data: (struct.pack(">I", len(data)) + kind + data
                             + struct.pack(">I", zlib.crc32(kind + data)))
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
  return b"\x89PNG\r\n\x1a\n" + b"".join([
    part(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
    part(b"IDAT", zlib.compress(rows)), part(b"IEND", b"")])


def tiff(pixels: np.ndarray, order: str = "<") -> bytes:
  """Of uint8 or uint16 [H, W, C], in one strip."""
  (height, width, channels), bits = pixels.shape, 8 * pixels.itemsize
  data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
  each = struct.pack(f"{order}{channels}H", *[bits] * channels)
  table = 8 + len(data) + len(each)
  # Up to four bytes stand in the table itself.
  kind, value = {1: (4, bits), 2: (3, bits << 16 | bits)}.get(channels, (3, 8 + len(data)))
  tags = [(256, 4, 1, width), (257, 4, 1, height), (258, kind, channels, value), (259, 4, 1, 1),
          (262, 4, 1, 2 if channels > 2 else 1), (273, 4, 1, 8), (277, 4, 1, channels),
          (278, 4, 1, height), (279, 4, 1, len(data))]
  head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, table)
  return head + data + each + struct.pack(f"{order}H", len(tags)) + b"".join(
    struct.pack(f"{order}HHII", *tag) for tag in tags) + bytes(4)


RNG = np.random.default_rng(0)
BANDS = tiff(RNG.integers(0, 4096, (50, 60, 13)).astype(np.uint16))
COLOURS = deep_png(RNG.integers(0, 65536, (50, 60, 3)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_says_what_it_holds(order, channels, dtype):
  data = tiff(np.ones((3, 4, channels), dtype), order)
  bits = 8 * np.dtype(dtype).itemsize
  assert held(data) == Held(channels, bits)
  assert held(data).beyond == (channels > 4 or bits > 8)
  with io.BytesIO(data) as file:
    assert held(file) == Held(channels, bits) and file.tell() == 0
  if channels in (1, 3) and bits == 8:
    assert (np.asarray(Image.open(io.BytesIO(data))) == 1).all()  # it is a TIFF


def test_a_png_says_what_it_holds():
  assert [held(png(mode)) for mode in ("L", "LA", "RGB", "RGBA", "P", "I;16")] == [
    (1, 8), (2, 8), (3, 8), (4, 8), (3, 8), (1, 16)]
  assert held(COLOURS) == (3, 16) and held(COLOURS).beyond
  assert not held(png("RGBA")).beyond


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("data", [b"", b"II*\0", BANDS[:99], png("L")[:20], b"\xff\xd8\xff"],
                         ids=["nothing", "start of a TIFF", "cut TIFF", "cut PNG", "JPEG"])
def test_what_does_not_say_is_taken_for_rgb(data):
  assert held(data) == (3, 8)


@pytest.mark.parametrize("channels, dtype", [(5, np.uint8), (6, np.uint8), (13, np.uint16)])
def test_a_pipeline_says_that_it_has_no_use_for_more_channels(channels, dtype):
  """Of some of these Pillow would read the first three, and of others not know what they are."""
  with pytest.raises(DamagedImage, match=rf"^x\.tif cannot be read: it has {channels} channels, "
                     "which sources and packing carry as they are") as error:
    decode(tiff(np.ones((4, 4, channels), dtype)), "x.tif")
  assert "\n" not in str(error.value)
  assert decode(tiff(np.ones((4, 4, 3), np.uint8)), "x.tif").shape == (4, 4, 3)


@pytest.mark.parametrize("encoding", [Encoding(), Encoding(shorter=16, all=True)])
def test_sources_lists_and_packing_carry_every_byte(tmp_path, encoding):
  wanted = {"bands.tif": BANDS, "colours.png": COLOURS, "grey.png": png("I;16")}
  for name, data in wanted.items():
    (tmp_path / name).write_bytes(data)
  (tmp_path / "list.csv").write_text("path,split\n" + "".join(f"{name},train\n" for name in wanted))
  listed = open_source(f"manifest:{tmp_path}/list.csv", "train")
  packed = pack(f"manifest:{tmp_path}/list.csv", tmp_path / "out", split="train", encoding=encoding)
  assert packed.images == 3 and not packed.left_out
  for source in (listed, open_source(tmp_path / "out", "train")):
    assert {source.name(i): source.encoded(i) for i in range(len(source))} == wanted
    at = [source.name(i) for i in range(len(source))].index("bands.tif")
    with pytest.raises(DamagedImage, match="it has 13 channels"):
      source[at]
