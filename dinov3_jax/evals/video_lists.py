"""Which videos a data set of moving masks has: DAVIS 2017, YouTube-VOS, MOSE."""

import dataclasses
import pathlib

import numpy as np

from dinov3_jax.evals import video_masks
from dinov3_jax.evals.framing import read_labels
from dinov3_jax.evals.session import LayoutError, Session

LAYOUT = ("DAVIS: ImageSets/2017/val.txt, JPEGImages/480p/VIDEO/*.jpg, "
          "Annotations/480p/VIDEO/*.png; or YouTube-VOS: train/meta.json, train/JPEGImages/VIDEO, "
          "train/Annotations/VIDEO; or MOSE: the same without meta.json")
# Shares of the training videos that the paper tests on; its lists are not public.
TESTED = {"YouTube-VOS": 690 / (690 + 2758), "MOSE": 301 / (301 + 1206)}


@dataclasses.dataclass(frozen=True)
class Video:
  """A video from its first mask on.

  Attributes:
    frames: paths.
    masked: places in `frames` that have a mask, ascending, 0 the first.
    masks: integers [H, W] each, as they are stored.
  """

  frames: list[pathlib.Path]
  masked: list[int]
  masks: list[np.ndarray]


def find(session: Session) -> tuple[str, list[str]]:
  """The name of the data set, and the videos that are tested.

  Of YouTube-VOS and MOSE, whose test sets have no masks, they are a part of the training set,
  drawn by a seed: as large a part as the paper's.

  Raises:
    LayoutError: none of the layouts.
  """
  if not (session.data / "train/JPEGImages").is_dir():
    return "DAVIS", session.path("ImageSets/2017/val.txt", LAYOUT).read_text().split()
  name = "YouTube-VOS" if (session.data / "train/meta.json").is_file() else "MOSE"
  videos = sorted(p.name for p in session.path("train/Annotations", LAYOUT).iterdir() if p.is_dir())
  if not videos:
    raise LayoutError(f"{session.data}/train/Annotations has no videos: wanted is {LAYOUT}")
  order = np.random.default_rng(0).permutation(len(videos))
  return name, sorted(videos[i] for i in order[:max(round(TESTED[name] * len(videos)), 1)])


def read(session: Session, name: str, video: str) -> Video:
  """The frames of a video and its masks.

  DAVIS and MOSE have a mask for every frame, YouTube-VOS for every fifth one, and there the first
  mask may come later than the first frame.

  Raises:
    LayoutError: masks without frames, frames without masks where each has one, or too few masks.
    ValueError: a mask that is stored in colours.
  """
  images, labels = (("JPEGImages/480p", "Annotations/480p") if name == "DAVIS" else
                    ("train/JPEGImages", "train/Annotations"))
  frames = sorted(session.path(f"{images}/{video}", LAYOUT).glob("*.jpg"))
  folder = session.path(f"{labels}/{video}", LAYOUT)
  masks, stems = sorted(folder.glob("*.png")), [path.stem for path in frames]
  missing = [path.stem for path in masks if path.stem not in stems]
  if missing or len(masks) < 3 or (name != "YouTube-VOS" and len(masks) != len(frames)):
    raise LayoutError(f"{folder} has {len(masks)} masks for {len(frames)} frames: three or more "
                      "are wanted, of the same names as the frames")
  first = stems.index(masks[0].stem)
  return Video(frames[first:], [stems.index(path.stem) - first for path in masks],
               [read_labels(path) for path in masks])


def of_the_first(masks: list[np.ndarray]) -> list[np.ndarray]:
  """The masks with the objects of the first one alone, numbered from 1 without gaps.

  Others are background, and so is what is void (255) in the first one; later it stays void.
  """
  objects = np.setdiff1d(masks[0], [0, video_masks.VOID])
  table = np.zeros(256, np.uint8)
  table[objects] = np.arange(1, len(objects) + 1)
  first = table[masks[0]]
  table[video_masks.VOID] = video_masks.VOID
  return [first, *(table[mask] for mask in masks[1:])]
