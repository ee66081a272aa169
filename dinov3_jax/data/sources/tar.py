"""Tars of images, as WebDataset writes them: an index of offsets, then single reads."""

import os
import re
import tarfile

from dinov3_jax.data.decode import Decoder
from dinov3_jax.data.sources import places
from dinov3_jax.data.sources.encoded import EncodedSource, from_ranges
from dinov3_jax.data.sources.index import Entry, Found, open_index
from dinov3_jax.data.sources.ranges import Ranges
from dinov3_jax.data.walk import SUFFIXES, printable

COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"(\xb5": "unzstd"}


def open_tars(what: str, files: list[str], split: str, decoder: Decoder, cache_gb: float = 0.0
              ) -> EncodedSource:
  """The JPEG, PNG and WebP files in tars, in the order of their names.

  The label is the number in the `.cls` file of the same name up to the first dot, as WebDataset has
  it, or else the folder at the top.

  Raises:
    ValueError: a tar that is compressed, cut or unreadable; one line.
  """
  index = open_index("tar", files, scan)
  return EncodedSource(what, index, from_ranges(Ranges(index.files, index.marks, cache_gb)), split,
                       decoder)


def scan(path: str) -> Found:
  """What is in a tar."""
  with places.open_file(path) as file:
    start = file.read(2)
    if start in COMPRESSED:
      raise ValueError(
        f"{printable(path)} is compressed, so that no image in it can be read without all before "
        f"it: unpack it first (`{COMPRESSED[start]} {printable(os.path.basename(path))}`; images "
        "are compressed already)")
    file.seek(0)
    images, labels = [], {}
    try:
      with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
          if not member.isreg() or os.path.basename(member.name).startswith("."):
            continue
          name = re.sub(r"^(\./)+", "", member.name)
          if name.lower().endswith(SUFFIXES):
            images.append(Entry(name, member.offset_data, member.size))
          elif name.endswith(".cls"):
            text = tar.extractfile(member).read().strip()
            labels[_key(name)] = int(text) if text.isdigit() else text.decode()
          tar.members = []  # which tarfile would keep
    except (tarfile.TarError, UnicodeDecodeError) as error:
      raise ValueError(f"{printable(path)} is no whole tar ({error}): copy it again") from error
    except OSError as error:
      raise places.unreadable(path, error) from error
  seen = {}
  for image in images:  # a name that comes again replaces the one before, as when it is unpacked
    image.label = labels.get(_key(image.name))
    seen[image.name] = image
  return Found(list(seen.values()))


def _key(name: str) -> str:
  """The name of a sample: up to the first dot of the file's."""
  folder, slash, file = name.rpartition("/")
  return folder + slash + file.split(".", 1)[0]
