r"""Writes small data sets in the layouts of the real ones, to try every task of `evaluate`.

  python -m dinov3_jax.evals.mini --out DIR

They are made from OpenMoji's drawings over generated backgrounds, by a seed: real in their layout
and in little else, so that figures on them compare models with each other, not with the paper.
Each set has a folder in DIR:

{sets}

The videos of actions and of pca need PyAV (`pip install av`); the stereo pair and NYUv2's depth are
real and need the photographs of `pip install scikit-image`; `--sets` takes some of the sets only.
"""

import argparse
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence

import numpy as np

from dinov3_jax.evals import mini_imagenet, mini_images, mini_roads, mini_videos, mini_views
from dinov3_jax.evals.mini_canvas import Drawings

SETS = {  # by folder: what writes it, and the tasks that it is for
  "folders": (mini_images.folders, "knn, linear, logistic"),
  "VOC": (mini_images.voc, "segmentation, discovery"),
  "SPair-71k": (mini_images.spair, "spair"),
  "DAVIS": (mini_videos.davis, "tracking"),
  "oxford": (mini_images.oxford, "oxford"),
  "AmsterTime": (mini_images.amstertime, "amstertime"),
  "YouTube-VOS": (mini_videos.youtube_vos, "tracking"),
  "MOSE": (mini_videos.mose, "tracking"),
  "SSv2": (mini_videos.ssv2, "actions"),
  "K400": (mini_videos.kinetics, "actions"),
  "UCF101": (mini_videos.ucf, "actions"),
  "NAVI": (mini_views.navi, "navi"),
  "Middlebury": (mini_views.middlebury, "stereo"),
  "NYUv2": (mini_views.nyu, "depth"),
  "ImageNet": (mini_imagenet.imagenet, "imagenet"),
  "KITTI": (mini_roads.kitti, "kitti"),
  "Met": (mini_images.met, "met"),
  "clip": (mini_videos.clip, "pca"),
  "foreground": (mini_images.foreground, "foreground"),
}


def write(out: str | os.PathLike, seed: int = 0, drawings=None, sets: Sequence[str] = tuple(SETS),
          beside: bool = False) -> None:
  """Writes data sets into a new folder.

  Args:
    out: the folder; it must not be there, or be empty.
    seed: equal seeds give equal files.
    drawings: in place of OpenMoji: RGBA pictures by index, with `labels` and `classes`.
    sets: which of `SETS`.
    beside: the folder may hold other sets already.

  Raises:
    ValueError: the folder holds something, or OpenMoji's packages are missing.
    ModuleNotFoundError: PyAV is missing, and a set has videos.
  """
  out = pathlib.Path(out)
  if out.exists() and not beside and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f"{out} is there already: choose another --out")
  drawings = Drawings() if drawings is None else drawings
  for i, (name, (make, _)) in enumerate(SETS.items()):
    if name in sets:
      whole = out / f".{name}.new"  # under its own name a set is complete, also after a kill
      shutil.rmtree(whole, ignore_errors=True)
      make(whole, drawings, np.random.default_rng([seed, i]))
      whole.rename(out / name)


def main() -> int:
  described = "\n".join(f"  {name:12} {tasks}" for name, (_, tasks) in SETS.items())
  parser = argparse.ArgumentParser(
      prog="python -m dinov3_jax.evals.mini", description=__doc__.format(sets=described),
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", metavar="DIR", required=True, type=os.path.expanduser)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET")
  args = parser.parse_args()
  try:
    write(args.out, args.seed, sets=args.sets)
  except (OSError, ValueError, ModuleNotFoundError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(f"{args.out}: {', '.join(args.sets)}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
