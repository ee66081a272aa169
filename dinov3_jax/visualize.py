r"""Draws what a model sees in an image.

  python -m dinov3_jax.visualize IMAGE --weights W

The picture has the image, the first three principal components of its patch features as red, green
and blue, and, with --patch ROW,COLUMN, how similar every patch is to that one (the brighter, the
more). With --foreground the background stays black and takes no part in the components. W is
whatever `dinov3_jax.load` takes, or `random` for an untrained network.

  python -m dinov3_jax.visualize IMAGE --weights W --text "the cat's eye"

draws how well each patch fits the text; W is then whatever `dinov3_jax.load_text` takes.
"""

if __name__ == "__main__":
  from dinov3_jax import signals
  signals.exit_at_once()

import dataclasses
import os
import pathlib
import sys
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dinov3_jax import arguments
from dinov3_jax.data.decode import DamagedImage, decode
from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.data.walk import printable
from dinov3_jax.evals import pca
from dinov3_jax.main import fail

if TYPE_CHECKING:  # slow to import: only where the work begins
  from flax import nnx

  from dinov3_jax.text.model import DinoText

SHORTER_SIDE = 512
MOST = 2**24  # pixels of a picture whose longer side follows the shorter


def foreground(patches) -> np.ndarray:
  """The patches that stand out from the image's border: bool [h, w] from features [h, w, D].

  Otsu's threshold cuts the first principal component in two; the part that has less of the border
  is the foreground. Patches that do not differ, such as a single one, are all foreground.
  """
  patches = np.asarray(patches, np.float32)
  rows = patches.reshape(-1, patches.shape[-1])
  noise = 1e-12 * np.square(rows).mean()  # the rounding of float32 features, about
  rows = rows - rows.mean(0)
  if np.square(rows).mean() <= noise:
    return np.ones(patches.shape[:2], bool)
  if len(rows) < rows.shape[1]:
    component = np.linalg.eigh(rows @ rows.T)[1][:, -1]
  else:
    component = rows @ np.linalg.eigh(rows.T @ rows)[1][:, -1]
  values = np.sort(component)
  # Otsu: the cut that leaves the means of both sides farthest apart, weighted by their sizes.
  below = np.arange(1, len(values))
  sums = np.cumsum(values)
  spread = (sums[:-1] / below - (sums[-1] - sums[:-1]) / below[::-1])**2 * below * below[::-1]
  mask = (component > values[spread.argmax()]).reshape(patches.shape[:2])
  border = np.ones_like(mask)
  border[1:-1, 1:-1] = False
  return mask if mask[border].mean() <= 0.5 else ~mask


def fit(image: np.ndarray, size: int | tuple[int, int], patch: int) -> tuple[int, int]:
  """The (height, width) of whole patches that an image comes to.

  Args:
    image: [H, W, 3].
    size: of the shorter side, the longer follows; or (height, width).
    patch: its side. All in pixels.

  Raises:
    ValueError: the longer side would follow to more than `MOST` pixels in all.
  """
  if not isinstance(size, int):
    sides = size
  else:
    height, width = image.shape[:2]
    sides = np.array([height, width]) * size / min(height, width)
    if sides.prod() > max(MOST, size**2):
      raise ValueError(f"the image of {width:,} x {height:,} pixels would become "
                       f"{round(sides[1]):,} x {round(sides[0]):,}, more than can be shown: give "
                       "--size HEIGHT,WIDTH, or cut a part out of it")
  height, width = (max(round(side / patch), 1) * patch for side in sides)
  return height, width


def visualize(image: np.ndarray, model: "nnx.Module", prepare: Preprocess, *, masked: bool = False,
              patch: tuple[int, int] | None = None) -> np.ndarray:
  """The picture of an image and its features.

  Args:
    image: uint8 [H, W, 3].
    model, prepare: as from `dinov3_jax.evals.backbone.open_model`.
    masked: colour the foreground alone.
    patch: (row, column) of the patch to compare all others with.

  Returns:
    uint8 [h, w, 3].

  Raises:
    ValueError: a patch outside.
  """
  from dinov3_jax.evals.backbone import patch_side
  height, width = np.broadcast_to(prepare.size, 2).tolist()
  side = patch_side(model)
  rows, columns = height // side, width // side
  if patch and not (0 <= patch[0] < rows and 0 <= patch[1] < columns):
    raise ValueError(f"there is no patch {patch[0]},{patch[1]}: rows go to {rows - 1}, columns to "
                     f"{columns - 1}")
  tokens, = model.features(prepare(image)[None], reshape=True)
  patches = np.asarray(tokens["patches"][0], np.float32)
  shown = np.asarray(Image.fromarray(image).resize((width, height), Image.BICUBIC))
  mask = foreground(patches)[None] if masked else None
  pictures = [shown, pca.enlarge(pca.pca_rgb(patches[None], mask)[0], height, width)]
  if patch:
    similarity = pca.heatmap(pca.similarity_map(patches, patch))
    pictures.append(pca.enlarge(similarity, height, width))
    pictures[::2] = [framed(x, patch[0] * side, patch[1] * side, side) for x in pictures[::2]]
  return pca.grid([pictures])


def visualize_text(image: np.ndarray, model: "DinoText", prepare: Preprocess, text: str
                   ) -> np.ndarray:
  """The picture of an image and of how well each of its patches fits a text.

  Args:
    image: uint8 [H, W, 3].
    model: as from `dinov3_jax.load_text`.
    prepare: what the image goes through, whole patches.
    text: what is looked for.

  Returns:
    uint8 [h, w, 3]; the map is dark at the patch that fits least and bright at the one that
    fits best.

  Raises:
    ValueError: an empty text.
  """
  if not text.strip():
    raise ValueError("--text is empty: say what to look for")
  height, width = np.broadcast_to(prepare.size, 2).tolist()
  side = model.patch_size
  patches = np.asarray(model.encode_image(prepare(image)[None])["patches"][0])
  fit = (patches @ model.encode_text(text)["patches"][0]).reshape(height // side, width // side)
  shown = np.asarray(Image.fromarray(image).resize((width, height), Image.BICUBIC))
  return pca.grid([[shown, pca.enlarge(pca.heatmap(fit), height, width)]])


def framed(picture: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
  """A picture with a square in it, drawn white on black."""
  picture = picture.copy()
  for width, value in ((4, 0), (2, 255)):  # pixels
    outer = np.zeros(picture.shape[:2], bool)
    outer[max(top - width, 0):top + side + width, max(left - width, 0):left + side + width] = True
    outer[top:top + side, left:left + side] = False
    picture[outer] = value
  return picture


def parser() -> arguments.Parser:
  """The command line."""
  made = arguments.Parser("visualize", __doc__)
  made.add_argument("image", metavar="IMAGE", type=os.path.expanduser)
  arguments.add_model(made)
  add = made.add_argument_group("the picture").add_argument
  add("--out", metavar="FILE", type=os.path.expanduser,
      help="the picture; by default IMAGE's name with .dinov3.png, here")
  add("--size", type=arguments.size, default=SHORTER_SIDE, metavar="SIDE|HEIGHT,WIDTH",
      help=f"of the shorter side or both, in pixels, {SHORTER_SIDE} by default; rounded to patches")
  add("--patch", type=arguments.patch, metavar="ROW,COLUMN",
      help="show what is similar to this patch")
  add("--foreground", action="store_true", help="colour only what stands out")
  add("--text", metavar="WORDS", help="show what fits these words")
  return made


def main() -> int:
  args = parser().parse_intermixed_args()
  try:
    from dinov3_jax.evals.backbone import open_model, patch_side  # slow
    out = check_out(args.out or f"{pathlib.Path(args.image).stem}.dinov3.png", args.image)
    if not os.path.isfile(args.image):
      raise FileNotFoundError(f"{printable(args.image)} is no file")
    image = decode(pathlib.Path(args.image), args.image)
    if args.text is not None:
      from dinov3_jax.text.loading import load_text
      if args.patch or args.foreground:
        raise ValueError("--text shows a map of its own: leave out --patch and --foreground")
      model = load_text(args.weights, dtype=args.dtype or "float32")
      prepare, side = model.preprocess, model.patch_size
    else:
      model, prepare = open_model(args.weights, args.model, dtype=args.dtype)
      side = patch_side(model)
    prepare = dataclasses.replace(prepare, size=fit(image, args.size, side))
    if args.text is not None:
      picture = visualize_text(image, model, prepare, args.text)
    else:
      picture = visualize(image, model, prepare, masked=args.foreground, patch=args.patch)
    pca.save(out, picture)
  except (OSError, ValueError, ModuleNotFoundError, DamagedImage) as error:
    return fail(error)
  height, width = prepare.size
  print(f"{printable(out)}: {height // side} rows and {width // side} columns of patches "
        f"({side} pixels)")
  return 0


def check_out(out: str, image: str) -> pathlib.Path:
  """The path of a picture that can be written and is not the image itself, or a ValueError."""
  path = pathlib.Path(out)
  if path.exists() and os.path.exists(image) and os.path.samefile(path, image):
    raise ValueError(f"{printable(out)} is the image itself: choose another --out")
  if path.suffix.lower() not in (".png", ".jpg", ".webp"):
    raise ValueError(f"{out} must end in .png, .jpg or .webp")
  if path.is_dir() or not os.access(path.parent, os.W_OK):
    raise ValueError(f"{out} cannot be written: it is a folder, or there is no {path.parent} that "
                     "may be changed")
  return path


if __name__ == "__main__":
  sys.exit(main())
