"""Video segmentation by label propagation on DAVIS 2017, YouTube-VOS and MOSE: J, F, J&F."""

import hashlib
import pathlib

import numpy as np

from dinov3_jax.data.decode import decode
from dinov3_jax.evals import video_lists, video_masks
from dinov3_jax.evals.drawing import overlay
from dinov3_jax.evals.propagation import (
  Propagation,
  frame_size,
  propagate,
  sample_labels,
  to_pixels,
)
from dinov3_jax.evals.session import LayoutError, Result, Session, mark

SHORT = 960  # the paper's middle resolution, and the notebook's
# Table 5 and section 7, at the middle resolution.
PAPER = {"DAVIS": {name: {"J&F": value} for name, value in dict(
  vits16=72.7, vits16plus=75.5, vitb16=77.2, vitl16=79.9, vith16plus=79.3, vit7b16=79.7).items()},
         "YouTube-VOS": {"vit7b16": {"J&F": 80.2}}, "MOSE": {"vit7b16": {"J&F": 53.9}}}


def run(session: Session) -> Result:
  """All videos of the set; the settings are those of the notebook."""
  settings, short = Propagation(), session.size or SHORT
  name, listed = video_lists.find(session)
  videos = session.some(listed)
  scores, copied, pictures = {}, {}, {}
  ledger = session.ledger("tracking", (settings, short))
  for video in session.each(videos, "videos"):
    own = video_lists.read(session, name, video)
    # DAVIS numbers its objects without gaps, and its rule counts those that come later.
    masks = own.masks if name == "DAVIS" else video_lists.of_the_first(own.masks)
    first = np.where(masks[0] == video_masks.VOID, 0, masks[0])
    if not first.any():
      raise LayoutError(f"the first mask of {name}'s video {video} has no object")
    key = repr((video, [mark(path) for path in own.frames], [digest(mask) for mask in masks]))

    def compute(own=own, masks=masks, first=first, video=video):
      found = track(session, own.frames, first, settings, short)
      if not pictures:
        pictures[f"{video}.gif"] = [overlay(decode(f, f), m) for f, m in zip(own.frames, found)]
      return {i: [x.tolist() for x in pair] for i, pair in video_masks.score(
          [found[place] for place in own.masked], masks).items()}

    # The first one is tracked again by every run, for its picture.
    result = ledger.get(key, compute) if pictures else compute()
    scores[video] = {int(i): tuple(map(np.array, pair)) for i, pair in result.items()}
    copied[video] = video_masks.score([first] * len(masks), masks)
  figures = video_masks.figures(scores)
  names = {"JF": "J&F", "J_mean": "J", "F_mean": "F"}
  return Result(
    {names.get(key, key.replace("_", " ")): 100 * value for key, value in figures.items()}
    | {"J&F of the first mask, copied": 100 * video_masks.figures(copied)["JF"]},
    dict(settings.__dict__, data=name, short_side=short, videos=len(videos), to_pixels="bilinear",
         of={name: 100 * float(np.mean([np.mean(pair) for pair in own.values()]))
             for name, own in scores.items()}),
    [f"frames with a short side of {short} pixels, not {SHORT}"] * (short != SHORT)
    + [f"{len(listed)} videos of the training set, drawn by a seed: the paper's list is not "
       "public"] * (name != "DAVIS")
    + [f"{len(videos)} of {len(listed)} videos"] * (len(videos) < len(listed)), PAPER[name],
    pictures)


def digest(mask: np.ndarray) -> str:
  """Tells a mask from others of any size."""
  return hashlib.sha256(repr((mask.shape, mask.dtype.str)).encode() + mask.tobytes()).hexdigest()


def track(session: Session, frames: list[pathlib.Path], first: np.ndarray, settings: Propagation,
          short: int) -> list[np.ndarray]:
  """The label of every pixel of every frame, uint8 [H, W] each; the first mask as given."""
  height, width = frame_size(*first.shape, short, session.patch)
  grid = sample_labels(first, height // session.patch, width // session.patch)
  one_hot = np.eye(int(first.max()) + 1, dtype=np.float32)[grid]
  soft = propagate(session.frames(frames, height, width), one_hot, settings)
  next(soft)
  return [first.astype(np.uint8), *(to_pixels(x, *first.shape) for x in soft)]
