"""Writes what to train on: parts of a curation with weights, as the file that training reads.

`data.sources.parts` says what is in it, and has the parts themselves.
"""

import pathlib
from collections.abc import Sequence

from dinov3_jax.curation import disk
from dinov3_jax.data.sources.parts import FILE, Part, probabilities, read

__all__ = ["FILE", "Part", "probabilities", "read", "write"]


def write(folder: pathlib.Path, parts: Sequence[Part]) -> dict:
  """Writes a mixture into a folder that is there; returns what mix.json has.

  Raises:
    ValueError: as `probabilities`; a name that is no file's, or of an image with a line break.
  """
  sources = []
  for part, probability in zip(parts, probabilities(parts)):
    if part.name in ("", ".", "..") or "/" in part.name:
      raise ValueError(f"{part.name!r} can be no file's name")
    if any("\n" in name for name in part.names or ()):
      raise ValueError(f"{part.name} has an image with a line break in its name: rename it")
    listed = None if part.names is None else f"{part.name}.txt"
    if listed:
      disk.write_text(folder / listed, "".join(f"{name}\n" for name in part.names))
    sources.append(dict(name=part.name, source=part.source, split=part.split, list=listed,
                        images=part.count, homogeneous=part.homogeneous, probability=probability))
  mixture = dict(format=1, sources=sources)
  disk.write_json(folder / FILE, mixture)
  return mixture
