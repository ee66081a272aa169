"""Video segmentation by label propagation on DAVIS 2017: J, F and J&F."""

import pathlib

import numpy as np

from dinov3_jax.data.decode import decode
from dinov3_jax.evals import video_masks
from dinov3_jax.evals.drawing import overlay
from dinov3_jax.evals.framing import read_labels
from dinov3_jax.evals.propagation import (
  Propagation,
  frame_size,
  propagate,
  sample_labels,
  to_pixels,
)
from dinov3_jax.evals.session import LayoutError, Result, Session, mark

SHORT = 960  # the paper's middle resolution, and the notebook's
LAYOUT = "DAVIS: ImageSets/2017/val.txt, JPEGImages/480p/VIDEO/*.jpg, Annotations/480p/VIDEO/*.png"
# Table 5 and section 7, DAVIS at the middle resolution.
PAPER = {name: {"J&F": value} for name, value in dict(
  vits16=72.7, vits16plus=75.5, vitb16=77.2, vitl16=79.9, vith16plus=79.3, vit7b16=79.7).items()}


def run(session: Session) -> Result:
  """All videos of the validation set; the settings are those of the notebook."""
  settings, short = Propagation(), session.size or SHORT
  listed = session.path("ImageSets/2017/val.txt", LAYOUT).read_text().split()
  videos = session.some(listed)
  scores, copied, pictures = {}, {}, {}
  ledger = session.ledger("tracking", (settings, short))
  for name in session.each(videos, "videos"):
    frames, masks = read_video(session, name)
    first = np.where(masks[0] == video_masks.VOID, 0, masks[0])
    key = repr((name, [mark(path) for path in frames], [int(mask.sum()) for mask in masks]))

    def compute(name=name, frames=frames, masks=masks, first=first):
      found = track(session, frames, first, settings, short)
      if not pictures:
        pictures[f"{name}.gif"] = [overlay(decode(f, f), m) for f, m in zip(frames, found)]
      return {i: [x.tolist() for x in pair]
              for i, pair in video_masks.score(found, masks).items()}

    # The first one is tracked again by every run, for its picture.
    result = ledger.get(key, compute) if pictures else compute()
    scores[name] = {int(i): tuple(map(np.array, pair)) for i, pair in result.items()}
    copied[name] = video_masks.score([first] * len(masks), masks)
  figures = video_masks.figures(scores)
  names = {"JF": "J&F", "J_mean": "J", "F_mean": "F"}
  return Result(
    {names.get(key, key.replace("_", " ")): 100 * value for key, value in figures.items()}
    | {"J&F of the first mask, copied": 100 * video_masks.figures(copied)["JF"]},
    dict(settings.__dict__, short_side=short, videos=len(videos), to_pixels="bilinear",
         of={name: 100 * float(np.mean([np.mean(pair) for pair in own.values()]))
             for name, own in scores.items()}),
    [f"frames with a short side of {short} pixels, not {SHORT}"] * (short != SHORT)
    + [f"{len(videos)} of {len(listed)} videos"] * (len(videos) < len(listed)), PAPER, pictures)


def read_video(session: Session, name: str) -> tuple[list[pathlib.Path], list[np.ndarray]]:
  """The paths of a video's frames, and its masks as they are stored.

  Raises:
    LayoutError: frames and masks that are not of the same names, or too few of them.
    ValueError: a mask that is stored in colours.
  """
  frames = sorted(session.path(f"JPEGImages/480p/{name}", LAYOUT).glob("*.jpg"))
  folder = session.path(f"Annotations/480p/{name}", LAYOUT)
  masks = sorted(folder.glob("*.png"))
  if [p.stem for p in frames] != [p.stem for p in masks] or len(frames) < 3:
    raise LayoutError(f"{folder} has {len(masks)} masks for {len(frames)} frames: three or more "
                      "are wanted, of the same names as the frames")
  return frames, [read_labels(path) for path in masks]


def track(session: Session, frames: list[pathlib.Path], first: np.ndarray, settings: Propagation,
          short: int) -> list[np.ndarray]:
  """The label of every pixel of every frame, uint8 [H, W] each; the first mask as given."""
  height, width = frame_size(*first.shape, short, session.patch)
  grid = sample_labels(first, height // session.patch, width // session.patch)
  one_hot = np.eye(int(first.max()) + 1, dtype=np.float32)[grid]
  features = (session.patches(decode(path, path), height, width) for path in frames)
  soft = propagate(features, one_hot, settings)
  next(soft)
  return [first.astype(np.uint8), *(to_pixels(x, *first.shape) for x in soft)]
