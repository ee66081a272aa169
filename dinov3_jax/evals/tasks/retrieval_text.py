"""Retrieval of captions by images and of images by captions, on COCO and Flickr30k."""

import numpy as np

from dinov3_jax.data.pairs.coco import LAYOUT as FILES
from dinov3_jax.data.pairs.coco import coco_pairs
from dinov3_jax.evals.framing import framing
from dinov3_jax.evals.session import LayoutError, Result, Session
from dinov3_jax.evals.tasks.zeroshot import image_features
from dinov3_jax.text.retrieval import RANKS, recall

CAPTIONS = 5  # of an image that count, as is the custom
PAPER = {"vitl16": {"image to text R@1": 63.7, "text to image R@1": 45.6}}  # table 16, COCO


def run(session: Session) -> Result:
  """Recall at 1, 5 and 10, both ways: of Karpathy's test split, or of COCO's val2017."""
  split = "test"
  try:
    pairs = coco_pairs(session.data, "test")
  except ValueError:
    split = "val"
    try:
      pairs = coco_pairs(session.data, "val")
    except ValueError as error:
      raise LayoutError(f"{error}" if "wanted is" in str(error) else
                        f"{error}: wanted is {FILES}") from error
  chosen = session.some(range(len(pairs)))
  size = session.side(int(np.max(session.prepare.size)))
  paths = [pairs.images.path(int(pairs.chosen[i])) for i in chosen]
  images, kept = image_features(session, paths, framing(session.prepare, size))
  told = [pairs.captions[chosen[i]][:CAPTIONS] for i in kept]
  texts = session.model.encode_text([text for texts in told for text in texts])["global"]
  owners = np.repeat(np.arange(len(told)), [len(texts) for texts in told])
  found = recall(images, texts, owners)
  named = {f"{way.replace('_', ' ')} R@{rank}": 100 * found[f"{way}_{rank:02}"]
           for way in ("image_to_text", "text_to_image") for rank in RANKS}
  is_coco = len(kept) == 5000
  return Result(named, dict(size=size, split=split, images=len(kept), captions=len(texts)),
                ["the paper does not say the size of its images"]
                + [f"{session.limit} images"] * (session.limit is not None),
                PAPER if is_coco else {})
