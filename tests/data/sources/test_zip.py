"""Zips: stored and deflated, and those that are not whole."""

import os
import zipfile

import pytest

from dinov3_jax.data.sources import DamagedImage, open_source
from tests.data.conftest import below


def write(path, images, method=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", method) as archive:
    for name, file in below(images).items():
      info = zipfile.ZipInfo(name)
      info.extra = b"\xfe\xca" + (200).to_bytes(2, "little") + bytes(200)  # long, in both headers
      archive.writestr(info, file.read_bytes(), method)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_bytes_are_those_of_the_files(tmp_path, images, method):
  write(tmp_path / "x.zip", images, method)
  source = open_source(tmp_path / "x.zip", "all")
  for i, (name, file) in enumerate(below(images).items()):
    assert source.name(i) == name and source.encoded(i) == file.read_bytes()


def test_a_cut_zip_is_named(tmp_path, images):
  path = tmp_path / "x.zip"
  write(path, images)
  os.truncate(path, path.stat().st_size // 2)
  with pytest.raises(ValueError, match=r"x\.zip is no whole zip .*copy it again"):
    open_source(path, "train")


def test_methods_and_encryption_that_cannot_be_read(tmp_path, images):
  write(tmp_path / "x.zip", images, zipfile.ZIP_LZMA)
  with pytest.raises(ValueError, match=r"packed by a method that cannot be read here .14."):
    open_source(tmp_path / "x.zip", "train")
  write(tmp_path / "y.zip", images)
  data = bytearray((tmp_path / "y.zip").read_bytes())
  data[data.index(b"PK\x01\x02") + 8] |= 1
  (tmp_path / "y.zip").write_bytes(data)
  with pytest.raises(ValueError, match="is encrypted: unpack it"):
    open_source(tmp_path / "y.zip", "train")


def test_damage_inside_is_that_of_one_image(tmp_path, images):
  path = tmp_path / "x.zip"
  write(path, images, zipfile.ZIP_DEFLATED)
  with zipfile.ZipFile(path) as archive:
    places = [info.header_offset for info in archive.infolist()]
  with path.open("r+b") as file:
    for place, junk, at in ((places[0], b"no", 0), (places[1], b"\xff" * 8, 242)):
      file.seek(place + at)
      file.write(junk)
  source = open_source(path, "all")
  for i, reason in ((0, "no file where its table says so"), (1, "a/02.png cannot be read")):
    with pytest.raises(DamagedImage, match=reason):
      source.encoded(i)
  assert source.encoded(2)
