"""COCO's captions, and Karpathy's splits of COCO and Flickr30k."""

import json
import os
import pathlib
from typing import Any

from dinov3_jax.data.decode import Decoder, decode
from dinov3_jax.data.pairs.base import Pairs, pair
from dinov3_jax.data.pairs.files import Files
from dinov3_jax.data.walk import printable

LAYOUT = ("annotations/captions_train2017.json and train2017/ (and val2017), or one of Karpathy's "
          "dataset_coco.json and dataset_flickr30k.json beside the images")
KARPATHY = ("dataset_coco.json", "dataset_flickr30k.json", "dataset.json")
YEARS = ("2017", "2014")
PARTS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def coco_pairs(root: str | os.PathLike, split: str, decoder: Decoder = decode) -> Pairs:
  """Images and captions of a folder as COCO or Flickr30k is downloaded.

  With one of Karpathy's files its splits count; "train" has his "restval", too. Else `train` and
  `val` are COCO's own, and there is no `test`, whose captions are not public.

  Raises:
    ValueError: another layout, a damaged file, or a split that is not there.
    OSError: a file cannot be read.
  """
  root = pathlib.Path(root).expanduser()
  found = next((root / name for name in KARPATHY if (root / name).is_file()), None)
  names, captions = _karpathy(root, found, split) if found else _official(root, split)
  if not names:
    raise ValueError(f"{printable(found or root)} has no image of the split {split!r}")
  return pair(Files(root, names, decoder), captions, f"{printable(root)} ({split})")


def _official(root: pathlib.Path, split: str) -> tuple[list[str], list[list[Any]]]:
  names, captions, there = [], [], False
  for part in ("train", "val") if split == "all" else (split,):
    for year in YEARS:
      path = root / "annotations" / f"captions_{part}{year}.json"
      if not path.is_file():
        continue
      there, content = True, _read(path)
      try:
        told = {}
        for row in content["annotations"]:
          told.setdefault(row["image_id"], []).append(row["caption"])
        for image in content["images"]:
          names.append(f"{part}{year}/{image['file_name']}")
          captions.append(told.get(image["id"], []))
      except (KeyError, TypeError) as error:
        raise ValueError(f"{printable(path)} is no file of COCO's captions (no {error})") from error
      break
  if not there:
    raise ValueError(f"{printable(root)} has no captions for the split {split!r}: wanted is "
                     f"{LAYOUT}")
  return names, captions


def _karpathy(root: pathlib.Path, path: pathlib.Path, split: str
              ) -> tuple[list[str], list[list[Any]]]:
  wanted = sum(PARTS.values(), ()) if split == "all" else PARTS[split]
  names, captions = [], []
  try:
    for image in _read(path)["images"]:
      if image["split"] in wanted:
        name = os.path.join(image.get("filepath", ""), image["filename"])
        names.append(name if (root / name).is_file() else _elsewhere(root, image["filename"], name))
        captions.append([sentence["raw"] for sentence in image["sentences"]])
  except (KeyError, TypeError) as error:
    raise ValueError(f"{printable(path)} is no file of Karpathy's (no {error})") from error
  return names, captions


def _elsewhere(root: pathlib.Path, name: str, otherwise: str) -> str:
  """Where people keep Flickr30k's images."""
  folders = ("images", "flickr30k-images", "flickr30k_images", "")
  return next((os.path.join(folder, name) for folder in folders
               if (root / folder / name).is_file()), otherwise)


def _read(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{printable(path)} is damaged: {error}") from error
