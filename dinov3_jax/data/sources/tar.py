"""Tars of images, as WebDataset writes them: an index of offsets, then single reads."""

import contextlib
import os
import re
import tarfile
from collections.abc import Callable, Iterator

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
  images, labels = [], {}
  with members(path) as found:
    for name, member, read in found:
      if name.lower().endswith(SUFFIXES):
        images.append(Entry(name, member.offset_data, member.size))
      elif name.endswith(".cls"):
        text = read().strip()
        labels[key_of(name)] = int(text) if text.isdigit() else text.decode()
  seen = {}
  for image in images:  # a name that comes again replaces the one before, as when it is unpacked
    image.label = labels.get(key_of(image.name))
    seen[image.name] = image
  return Found(list(seen.values()))


@contextlib.contextmanager
def members(path: str) -> Iterator[Iterator[tuple[str, tarfile.TarInfo, Callable[[], bytes]]]]:
  """The files in a tar, in its order: their names, their headers, and what reads them.

  Hidden ones are left out. What goes wrong in the block, while they are read, is told in one line.

  Raises:
    ValueError: a tar that is compressed, cut or unreadable.
  """
  with places.open_file(path) as file:
    start = file.read(2)
    if start in COMPRESSED:
      raise ValueError(
        f"{printable(path)} is compressed, so that no image in it can be read without all before "
        f"it: unpack it first (`{COMPRESSED[start]} {printable(os.path.basename(path))}`; images "
        "are compressed already)")
    file.seek(0)
    try:
      with tarfile.open(fileobj=file, mode="r:") as tar:
        yield _files(tar)
    except (tarfile.TarError, UnicodeDecodeError) as error:
      raise ValueError(f"{printable(path)} is no whole tar ({error}): copy it again") from error
    except OSError as error:
      raise places.unreadable(path, error) from error


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo, Callable[[], bytes]]]:
  for member in tar:
    if member.isreg() and not os.path.basename(member.name).startswith("."):
      name = re.sub(r"^(\./)+", "", member.name)
      yield name, member, lambda member=member: tar.extractfile(member).read()
    tar.members = []  # which tarfile would keep


def key_of(name: str) -> str:
  """The name of a sample: up to the first dot of the file's."""
  folder, slash, file = name.rpartition("/")
  return folder + slash + file.split(".", 1)[0]
