"""Which videos a data set of actions has, and their classes: UCF101, SSv2, Kinetics, lists."""

import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from dinov3_jax.evals.session import LayoutError, Session

SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov")
UCF = "UCF-101/CLASS/*.avi with ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt"
SSV2 = "20bn-something-something-v2/ID.webm with labels.json, train.json and validation.json"
KINETICS = "train/CLASS/*.mp4 and val/CLASS/*.mp4"
CSV = "train.csv and val.csv with lines of a path and the number of its class"
LAYOUT = f"{UCF}; or {SSV2}; or {KINETICS}; or {CSV}"


@dataclasses.dataclass(frozen=True)
class Split:
  """Videos and their classes, int [n]."""

  paths: list[pathlib.Path]
  labels: np.ndarray

  def __len__(self):
    return len(self.paths)

  def of(self, places: Sequence[int]) -> "Split":
    return Split([self.paths[i] for i in places], self.labels[np.asarray(places, int)])


def find(session: Session) -> tuple[str, list[str], Split, Split]:
  """The name of the data set, its classes, and its training and its validation set.

  Raises:
    LayoutError: none of the layouts, or a list that does not fit what is there.
  """
  root = session.data
  if (root / "ucfTrainTestlist").is_dir():
    name, (classes, train, val) = "UCF101", _ucf(session)
  elif (root / "20bn-something-something-v2").is_dir():
    name, (classes, train, val) = "SSv2", _ssv2(session)
  elif (root / "train.csv").is_file():
    name, (classes, train, val) = "videos", _csv(session)
  else:
    name, (classes, train, val) = "K400", _kinetics(session)
  for split, own in (("training", train), ("validation", val)):
    if not own:
      raise LayoutError(f"{root} has no videos of the {split} set: wanted is {LAYOUT}")
  splits = [Split([path for path, _ in own], np.array([label for _, label in own]))
            for own in (train, val)]
  return name, classes, *splits


def _ucf(session):
  lists = "ucfTrainTestlist"
  numbers = dict(reversed(line.split()) for line in _lines(session, f"{lists}/classInd.txt", UCF))
  result = []
  for file in ("trainlist01.txt", "testlist01.txt"):
    # The training list ends its lines with the number of the class, the test list does not.
    names = [line.split()[0] for line in _lines(session, f"{lists}/{file}", UCF)]
    unknown = [name for name in names if name.split("/")[0] not in numbers]
    if unknown:
      raise LayoutError(f"{file} names {unknown[0]}, whose class is not in classInd.txt")
    result.append([(session.path(f"UCF-101/{name}", UCF), int(numbers[name.split("/")[0]]) - 1)
                   for name in names])
  return sorted(numbers, key=lambda name: int(numbers[name])), *result


def _ssv2(session):
  numbers = {name: int(i) for name, i in _json(session, "labels.json").items()}
  result = []
  for file in ("train.json", "validation.json"):
    own = []
    for item in _json(session, file):
      template = item["template"].replace("[", "").replace("]", "")
      if template not in numbers:
        raise LayoutError(f"{file} has the template {template!r}, which labels.json does not have")
      own.append((session.path(f"20bn-something-something-v2/{item['id']}.webm", SSV2),
                  numbers[template]))
    result.append(own)
  return sorted(numbers, key=numbers.get), *result


def _kinetics(session):
  folders = [session.path(split, LAYOUT) for split in ("train", "val")]
  classes = sorted(p.name for p in folders[0].iterdir() if p.is_dir())
  result = []
  for folder in folders:
    own = [(path, path.parent.name) for path in sorted(folder.glob("*/*"))
           if path.suffix.lower() in SUFFIXES]
    strange = [name for _, name in own if name not in classes]
    if strange:
      raise LayoutError(f"{folder} has a class {strange[0]} that the training set does not have")
    result.append([(path, classes.index(name)) for path, name in own])
  return classes, *result


def _csv(session):
  result = []
  for file in ("train.csv", "val.csv"):
    rows = list(csv.reader(_lines(session, file, CSV), delimiter=" "))
    wrong = [row for row in rows if len(row) != 2 or not row[1].isdecimal()]
    if wrong:
      raise LayoutError(f"{file} has a line {' '.join(wrong[0])!r}: wanted are a path and a number "
                        "with a space between them")
    result.append([(session.path(os.path.expanduser(path), CSV), int(label))
                   for path, label in rows])
  count = max((label for own in result for _, label in own), default=-1) + 1
  return [str(i) for i in range(count)], *result


def _lines(session, name: str, wanted: str) -> Iterator[str]:
  return (line for line in session.path(name, wanted).read_text().splitlines() if line.strip())


def _json(session, name: str):
  path = session.path(name, SSV2)
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise LayoutError(f"{path} is no JSON: {error}") from error
