"""What an encoded image holds, from its header: it may be more than is decoded."""

import io
from typing import BinaryIO, NamedTuple

from PIL import TiffImagePlugin

PNG, TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CHANNELS_OF_PNG = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by its colour type
PALETTE = 3  # of these, whose colours have 8 bits
WIDTH, BITS, CHANNELS = 256, 258, 277  # tags of TIFF


class Held(NamedTuple):
  """Channels, and bits of each."""

  channels: int
  bits: int

  @property
  def beyond(self) -> bool:
    """Whether it is more than eight bits of RGB and transparency."""
    return self.channels > 4 or self.bits > 8


def held(data: bytes | BinaryIO) -> Held:
  """What an encoded image holds.

  Args:
    data: its bytes, or a file at its beginning, which is left there.

  Returns:
    As the header of a PNG or TIFF file has it. For all other files, and where it cannot be read,
    that is (3, 8), as of most JPEGs.
  """
  file = io.BytesIO(data) if isinstance(data, bytes) else data
  start = file.read(26)
  found = Held(3, 8)
  try:
    if start.startswith(PNG):
      depth, kind = start[24:26]
      found = Held(CHANNELS_OF_PNG[kind], 8 if kind == PALETTE else depth)
    elif start.startswith(TIFF):
      tags = TiffImagePlugin.ImageFileDirectory_v2(start[:16 if 43 in start[2:4] else 8])
      file.seek(tags.next)
      tags.load(file)
      if WIDTH in tags:  # or it is cut off
        found = Held(int(tags.get(CHANNELS, 1)), int(max(tags.get(BITS, (1,)))))
  except Exception:  # of a damaged file, nearly anything
    pass
  file.seek(0)
  return found
