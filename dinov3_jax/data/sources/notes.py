"""What a decoder does to images that hold more than eight bits of RGB, said before it is done."""

import io
from collections.abc import Iterable

import numpy as np

from dinov3_jax.data.decode import Decoder, deep, open_image

SAMPLES = 8  # images that are looked at


def spread(count: int) -> list[int]:
  """The indices of at most `SAMPLES` of `count` images, evenly spread."""
  return sorted({i * count // SAMPLES for i in range(SAMPLES)}) if count else []


def pixel_notes(samples: Iterable[bytes | str], decoder: Decoder) -> list[str]:
  """Says which information in some images a decoder drops, and which setting keeps it.

  Args:
    samples: encoded images or paths; those that cannot be read are passed over.
    decoder: that will read them.

  Returns:
    One sentence for each kind of loss, without a full stop.
  """
  greatest, clear, kept = 0, False, decoder.depth
  for sample in samples:
    try:
      with (io.BytesIO(sample) if isinstance(sample, bytes) else open(sample, "rb") as file,
            open_image(file) as image):
        clear |= image.has_transparency_data
        if deep(image) and image.width * image.height <= decoder.max_pixels:
          greatest = max(greatest, np.asarray(image).max())
    except Exception:  # it is named when its turn comes
      continue
  notes = []
  if greatest and kept != "range":
    used = max(int(np.ceil(np.log2(float(greatest) + 1))), 8)
    note = (f"16-bit greys become 8 bits (data.depth={kept}); the greatest value in a sample of "
            f"images is {greatest:,}")
    bits = 16 if kept == "high_byte" else kept
    if used < bits:
      note += f", of {used} bits: data.depth={used} keeps the most of them"
    elif used > bits:
      note += f", of {used} bits: all above {2**bits - 1:,} becomes white"
    notes.append(note)
  if clear and not decoder.background:
    notes.append("transparency is dropped, and what shows is the colour stored under it; "
                 "data.background=white lays the images on white")
  return notes
