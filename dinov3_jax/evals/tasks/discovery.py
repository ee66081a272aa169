"""Object discovery with TokenCut on PASCAL VOC: CorLoc over a sweep of thresholds."""

import pathlib
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from dinov3_jax.data.decode import decode
from dinov3_jax.evals import tokencut
from dinov3_jax.evals.framing import normalize
from dinov3_jax.evals.pca import grid
from dinov3_jax.evals.session import LayoutError, Result, Session, mark, whole

LAYOUT = "VOCdevkit/VOC2007 (or VOC2012) with Annotations, ImageSets/Main/trainval.txt, JPEGImages"
LIST = "ImageSets/Main/trainval.txt"
YEARS = ("VOC2007", "VOC2012")
PAPER = {"vit7b16": {"VOC2007, best": 66.1, "VOC2012, best": 69.5}}  # figure 14
SHOWN = (160, 160)


def run(session: Session) -> Result:
  """Images at full resolution, filled up to whole patches with zeros; the best tau counts."""
  lists = [session.data / "VOCdevkit" / year / LIST for year in YEARS]
  lists = [path for path in lists if path.is_file()]
  roots = [path.parents[2] for path in lists or [session.path(f"VOCdevkit/VOC2007/{LIST}", LAYOUT)]]
  figures, pictures, counts = {}, {}, {}
  ledger = session.ledger("discovery", tokencut.TAUS)
  for root in roots:
    relative = f"VOCdevkit/{root.name}"
    listed = (root / LIST).read_text().split()
    boxes, truth, cells = {tau: [] for tau in tokencut.TAUS}, [], []
    for name in session.each(session.some(listed), "images"):
      truth.append(read_boxes(session.path(f"{relative}/Annotations/{name}.xml", LAYOUT)))
      path = session.path(f"{relative}/JPEGImages/{name}.jpg", LAYOUT)

      def compute(path=path):
        image = decode(path, path)
        features = features_of(session, image)
        return [tokencut.cut(features, tau).box(session.patch, *image.shape[:2])
                for tau in tokencut.TAUS]

      found = ledger.get(repr((root.name, name, mark(path))), compute)
      for tau, box in zip(tokencut.TAUS, found):
        boxes[tau].append(box)
      if len(cells) < 16:
        cells.append((decode(path, path), truth[-1]))
    by_tau = {tau: 100 * tokencut.corloc(own, truth) for tau, own in boxes.items()}
    best = max(by_tau, key=by_tau.get)
    figures |= {f"{root.name}, best": by_tau[best]}
    figures |= {f"{root.name}, tau = {tau:g}": value for tau, value in by_tau.items()}
    counts[root.name] = dict(images=len(truth), tau=best)
    pictures[f"{root.name}.png"] = grid([
      [outlined(image, own, boxes[best][i])] for i, (image, own) in enumerate(cells)])
  differs = [f"{session.limit} images"] * (session.limit is not None)
  return Result(figures, dict(
      features="patches of the last layer", epsilon=tokencut.EPSILON, sets=counts,
      best="the tau of the largest CorLoc on the same images"), differs, PAPER, pictures)


def features_of(session: Session, image: np.ndarray) -> np.ndarray:
  """Patches [h, w, D] of a whole image, zeros at its right and bottom after the normalisation."""
  x = normalize(image, session.prepare.mean, session.prepare.std)
  padding = [(0, whole(side, session.patch) - side) for side in x.shape[:2]]
  return np.asarray(session.run(np.pad(x, (*padding, (0, 0)))[None])[0])


def read_boxes(path: pathlib.Path) -> list[list[int]]:
  """The boxes of an annotation of VOC, difficult and truncated ones among them.

  Raises:
    LayoutError: it is no such annotation, or has no object.
  """
  try:
    objects = [dict(bndbox={side.tag: side.text for side in found.find("bndbox")})
               for found in ElementTree.parse(path).iter("object")]
    boxes = tokencut.voc_boxes(objects)
  except (ElementTree.ParseError, TypeError, KeyError, ValueError) as error:
    raise LayoutError(f"{path} is no annotation of VOC: {error}") from error
  if not boxes:
    raise LayoutError(f"{path} has no object")
  return boxes


def outlined(image: np.ndarray, truth, box) -> np.ndarray:
  """A small picture with the true boxes in white and the found one in red (miss) or green."""
  picture = Image.fromarray(image)
  draw = ImageDraw.Draw(picture)
  hit = tokencut.corloc([box], [truth]) > 0
  line = max(2, max(image.shape) // 100)
  for own in truth:
    draw.rectangle([own[0], own[1], own[2] - 1, own[3] - 1], outline="white", width=line)
  draw.rectangle([box[0], box[1], box[2] - 1, box[3] - 1], outline="lime" if hit else "red",
                 width=line)
  return np.asarray(picture.resize(SHOWN))
