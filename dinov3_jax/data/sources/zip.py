"""Zips of images: an index of offsets, then single reads."""

import functools
import struct
import zipfile
import zlib

from dinov3_jax.data.decode import DamagedImage, Decoder
from dinov3_jax.data.sources import places
from dinov3_jax.data.sources.encoded import EncodedSource
from dinov3_jax.data.sources.index import Entry, Found, Index, open_index
from dinov3_jax.data.sources.ranges import Ranges
from dinov3_jax.data.walk import SUFFIXES, printable

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
HEADER = 30  # bytes before the name
EXTRA = 64  # bytes that are read for what may stand after it; more cost a second read


def open_zips(what: str, files: list[str], split: str, decoder: Decoder, cache_gb: float = 0.0
              ) -> EncodedSource:
  """The JPEG, PNG and WebP files in zips, stored or deflated, in the order of their names.

  Raises:
    ValueError: a zip that is cut, encrypted or unreadable; one line.
  """
  index = open_index("zip", files, scan)
  reader = functools.partial(_read, Ranges(index.files, index.marks, cache_gb))
  return EncodedSource(what, index, reader, split, decoder)


def scan(path: str) -> Found:
  """What is in a zip."""
  try:
    with places.open_file(path) as file, zipfile.ZipFile(file) as archive:
      members = archive.infolist()
  except zipfile.BadZipFile as error:
    raise ValueError(f"{printable(path)} is no whole zip ({error}): copy it again") from error
  except OSError as error:
    raise places.unreadable(path, error) from error
  entries = {}
  for member in members:
    name = member.filename
    if (member.is_dir() or not name.lower().endswith(SUFFIXES) or name.startswith("__MACOSX/")
        or name.rpartition("/")[2].startswith(".")):
      continue
    if member.flag_bits & 1:
      raise ValueError(f"{printable(path)} is encrypted: unpack it, and give the folder")
    if member.compress_type not in METHODS:
      raise ValueError(f"{printable(path)} is packed by a method that cannot be read here "
                       f"({member.compress_type}): unpack it, and give the folder")
    entries[name] = Entry(name, member.header_offset, member.compress_size,
                          packed=member.compress_type)
  return Found(list(entries.values()))


def _read(ranges: Ranges, index: Index, row: int) -> bytes:
  file, offset, size = int(index.file[row]), int(index.offset[row]), int(index.size[row])
  length = len(index.name(row).encode())
  # What stands before the data is known only from there: read with it, where it fits.
  end = index.marks[file][0]
  reach = min(HEADER + length + EXTRA + size, end - offset)
  data = ranges.read(file, offset, reach, row)
  if data[:4] != b"PK\x03\x04":
    raise DamagedImage(index.name(row), "the zip has no file where its table says so")
  skip = HEADER + sum(struct.unpack_from("<HH", data, 26))
  if skip + size > len(data):
    data = ranges.read(file, offset, skip + size, row)
  data = data[skip : skip + size]
  if index.packed[row] == zipfile.ZIP_DEFLATED:
    try:
      data = zlib.decompress(data, -15)
    except zlib.error as error:
      raise DamagedImage(index.name(row), error) from error
  return data
