"""Semantic correspondence on SPair-71k: keypoints found in another image of the class."""

import collections
import json

import numpy as np

from dinov3_jax.data.decode import decode
from dinov3_jax.evals import spair
from dinov3_jax.evals.session import LayoutError, Result, Session, mark

SIZE = 1024  # sides of the padded images at a patch of 16
LAYOUT = "SPair-71k: PairAnnotation/test/*.json and JPEGImages/CLASS/*.jpg"
PAPER = {name: {"recall": value} for name, value in dict(  # table 4
  vits16=50.4, vits16plus=55.2, vitb16=57.2, vitl16=61.2, vith16plus=56.3, vit7b16=58.7).items()}


def run(session: Session) -> Result:
  """All pairs of the test set: the paper does not say how many it takes."""
  size = session.side(SIZE)
  files = sorted(session.path("PairAnnotation/test", LAYOUT).glob("*.json"))
  if not files:
    raise LayoutError(f"{session.data}/PairAnnotation/test has no .json files: wanted is {LAYOUT}")
  errors, features = collections.defaultdict(list), collections.OrderedDict()

  def features_of(category, name):
    if (category, name) not in features:
      path = session.path(f"JPEGImages/{category}/{name}", LAYOUT)
      image = decode(path, path)
      features[category, name] = max(image.shape[:2]), session.patches(
          spair.squared(image), size, size)
      if len(features) > 64:  # those of a pair's neighbours in the list come again
        features.popitem(last=False)
    return features[category, name]

  chosen = session.some(files)
  ledger = session.ledger("spair", size)
  for file in session.each(chosen, "pairs"):
    try:
      pair = json.loads(file.read_text())
      category, box = pair["category"], pair["trg_bndbox"]
      names, points = ([pair[f"{key}_{what}"] for key in ("src", "trg")]
                       for what in ("imname", "kps"))
    except (ValueError, KeyError) as error:
      raise LayoutError(f"{file} is no pair of SPair-71k: {error}") from error

    def compute(category=category, names=names, points=points, box=box):
      (source_side, source), (side, target) = (features_of(category, name) for name in names)
      scale = max(box[2] - box[0], box[3] - box[1]) / side
      return spair.keypoint_errors(
          source, target, spair.scaled_keypoints(points[0], source_side, size),
          spair.scaled_keypoints(points[1], side, size), size, scale).tolist()

    marks = [mark(session.data / "JPEGImages" / category / name) for name in names]
    errors[category].append(ledger.get(repr((file.name, mark(file), marks)), compute))
  recalls = {name: 100 * spair.recall(own) for name, own in sorted(errors.items())}
  return Result({"recall": float(np.mean(list(recalls.values())))}, dict(
      size=size, pairs=len(chosen), threshold=spair.THRESHOLD, of=recalls),
    [f"images of {size} pixels, not {SIZE}"] * (size != SIZE)
    + [f"{len(chosen)} of {len(files)} pairs"] * (len(chosen) < len(files)), PAPER)
