"""Object discovery with TokenCut on PASCAL VOC and COCO-20k: CorLoc over a sweep of thresholds."""

import collections
import json
import pathlib
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from dinov3_jax.data.decode import decode
from dinov3_jax.evals import tokencut
from dinov3_jax.evals.framing import normalize
from dinov3_jax.evals.pca import grid
from dinov3_jax.evals.session import LayoutError, Result, Session, mark, whole

COCO_LIST = "coco_20k_filenames.txt"
COCO_BOXES = "annotations/instances_train2014.json"
LAYOUT = ("VOCdevkit/VOC2007 (or VOC2012) with Annotations, ImageSets/Main/trainval.txt, "
          f"JPEGImages; or COCO with images/train2014, {COCO_BOXES} and LOST's {COCO_LIST}")
LIST = "ImageSets/Main/trainval.txt"
YEARS = ("VOC2007", "VOC2012")
PAPER = {"vit7b16": {"VOC2007, best": 66.1, "VOC2012, best": 69.5, "COCO-20k, best": 55.1}}
SHOWN = (160, 160)
Items = list[tuple[pathlib.Path, list[list[int]]]]  # images and their boxes


def run(session: Session) -> Result:
  """Images at full resolution, filled up to whole patches with zeros; the best tau counts."""
  figures, pictures, counts = {}, {}, {}
  ledger = session.ledger("discovery", tokencut.TAUS)
  for name, items in find(session).items():
    boxes, truth, cells = {tau: [] for tau in tokencut.TAUS}, [], []
    for path, own in session.each(session.some(items), "images"):
      truth.append(own)

      def compute(path=path):
        image = decode(path, path)
        features = features_of(session, image)
        return [tokencut.cut(features, tau).box(session.patch, *image.shape[:2])
                for tau in tokencut.TAUS]

      found = ledger.get(repr((name, path.stem, mark(path))), compute)
      for tau, box in zip(tokencut.TAUS, found):
        boxes[tau].append(box)
      if len(cells) < 16:
        cells.append((decode(path, path), own))
    by_tau = {tau: 100 * tokencut.corloc(own, truth) for tau, own in boxes.items()}
    best = max(by_tau, key=by_tau.get)
    figures |= {f"{name}, best": by_tau[best]}
    figures |= {f"{name}, tau = {tau:g}": value for tau, value in by_tau.items()}
    counts[name] = dict(images=len(truth), tau=best)
    pictures[f"{name}.png"] = grid([
      [outlined(image, own, boxes[best][i])] for i, (image, own) in enumerate(cells)])
  differs = [f"{session.limit} images"] * (session.limit is not None)
  return Result(figures, dict(
      features="patches of the last layer", epsilon=tokencut.EPSILON, sets=counts,
      best="the tau of the largest CorLoc on the same images"), differs, PAPER, pictures)


def find(session: Session) -> dict[str, Items]:
  """The images of every set that is there, and their boxes.

  Raises:
    LayoutError: none of them, or files that do not fit.
  """
  sets = {}
  for year in YEARS:
    base = f"VOCdevkit/{year}"
    if (session.data / base / LIST).is_file():
      sets[year] = [(session.path(f"{base}/JPEGImages/{name}.jpg", LAYOUT),
                     read_boxes(session.path(f"{base}/Annotations/{name}.xml", LAYOUT)))
                    for name in (session.data / base / LIST).read_text().split()]
  inside = "COCO/" if (session.data / "COCO").is_dir() else ""
  if (session.data / inside / COCO_BOXES).is_file():
    sets["COCO-20k"] = read_coco(session, inside)
  if not sets:
    session.path(f"VOCdevkit/VOC2007/{LIST}", LAYOUT)
  return sets


def read_coco(session: Session, inside: str) -> Items:
  """The images of LOST's list of COCO and their boxes; those that show crowds alone are left out.

  Args:
    inside: what stands before the names of the folders, "COCO/" or nothing.

  Raises:
    LayoutError: other files, or images that the annotations do not have.
  """
  listed = session.path(COCO_LIST if (session.data / COCO_LIST).exists() else inside + COCO_LIST,
                        LAYOUT).read_text().split()
  path = session.path(inside + COCO_BOXES, LAYOUT)
  try:
    found = json.loads(path.read_text())
    numbers = {image["file_name"]: image["id"] for image in found["images"]}
    annotations = collections.defaultdict(list)
    for annotation in found["annotations"]:
      annotations[annotation["image_id"]].append(annotation)
  except (ValueError, KeyError, TypeError) as error:
    raise LayoutError(f"{path} holds no annotations of COCO: {error}") from error
  items = []
  for name in (line.rsplit("/", 1)[-1] for line in listed):
    if name not in numbers:
      raise LayoutError(f"{COCO_LIST} names {name}, which {COCO_BOXES} does not have")
    boxes = tokencut.coco_boxes(annotations[numbers[name]])
    if boxes:
      items.append((session.path(f"{inside}images/train2014/{name}", LAYOUT), boxes))
  return items


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
