"""What small data sets are made of: drawings, backgrounds, and files as data sets have them."""

import pathlib

import numpy as np
from PIL import Image

# Colours of label files: VOC's first ones, so that a viewer shows them apart.
PALETTE = np.array([[i & 1 and 128, i & 2 and 128, i & 4 and 128] for i in range(8)], np.uint8)


class Drawings:
  """Drawings with their masks, from OpenMoji's side that is never trained on.

  Attributes:
    labels: their categories.
    classes: the names of these.
  """

  def __init__(self, side: int = 96, split: str = "test"):
    from dinov3_jax.data.sources.openmoji import OpenMoji
    self._source = OpenMoji(split, side, base_only=True)
    self.classes = [name.split()[0].lower() for name in self._source.classes]
    self.labels = self._source.labels

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index: int) -> Image.Image:
    """RGBA, with the soft edge of the mask."""
    picture = Image.fromarray(self._source[index]["image"]).convert("RGBA")
    picture.putalpha(Image.fromarray(self._source.mask(index)))
    return picture


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
  """A slope between two muted colours with soft blotches, uint8 [height, width, 3]."""
  first, second = rng.uniform(60, 200, (2, 3))
  angle = rng.uniform(0, 2 * np.pi)
  y, x = np.mgrid[:height, :width]
  slope = (np.cos(angle) * x / width + np.sin(angle) * y / height)[..., None]
  slope = (slope - slope.min()) / np.ptp(slope)
  blotches = np.asarray(Image.fromarray(rng.integers(0, 255, (6, 8), np.uint8)).resize(
      (width, height), Image.Resampling.BICUBIC), float)[..., None]
  colour = first + (second - first) * slope
  return np.clip(colour + (blotches - 127) * 0.15, 0, 255).astype(np.uint8)


def plain(height: int, width: int) -> np.ndarray:
  """White, uint8 [height, width, 3]."""
  return np.full((height, width, 3), 255, np.uint8)


def place(drawing: Image.Image, degrees: float, scale: float) -> Image.Image:
  """A drawing that is turned about its centre and scaled."""
  side = max(round(drawing.width * scale), 4)
  return drawing.resize((side, side), Image.Resampling.BICUBIC).rotate(
      degrees, Image.Resampling.BICUBIC)


def compose(canvas: np.ndarray, drawing: Image.Image, left: int, top: int
            ) -> tuple[np.ndarray, np.ndarray]:
  """The canvas with a drawing on it, and the drawing's alpha on the canvas, uint8 [H, W]."""
  layer = Image.new("RGBA", canvas.shape[1::-1])
  layer.paste(drawing, (left, top))
  picture = Image.alpha_composite(Image.fromarray(canvas).convert("RGBA"), layer)
  return np.asarray(picture.convert("RGB")), np.asarray(layer)[..., 3]


def save(path: pathlib.Path, image: np.ndarray):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path, **(
      dict(quality=92) if path.suffix.lower() in (".jpg", ".jpeg") else {}))


def save_labels(path: pathlib.Path, labels: np.ndarray):
  """A label file with a palette, as DAVIS and VOC have them."""
  path.parent.mkdir(parents=True, exist_ok=True)
  picture = Image.fromarray(labels.astype(np.uint8), "L").convert("P")
  picture.putdata(labels.astype(np.uint8).ravel())
  picture.putpalette(np.resize(PALETTE, (256, 3)).ravel().tolist())
  picture.save(path)
