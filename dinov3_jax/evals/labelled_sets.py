"""Data sets of labelled images as people download them: which images, which classes, which split.

The twelve fine-grained sets of the paper's table 22, and Places205 and iNaturalist of table 8.
"""

import csv
import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy.io import loadmat

from dinov3_jax.evals import plain_pickle
from dinov3_jax.evals.class_folders import classes_of, images_of
from dinov3_jax.evals.session import LayoutError, Session

PER_CLASS = "mean per class"  # metrics; top-1 is the other usual one
TOP1 = "top-1"
MAP = "11-point mAP"
CALTECH_TRAIN = 30  # images of each class
Split = tuple[list[pathlib.Path], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A data set.

  Attributes:
    name: as the paper has it.
    classes: names, in order.
    train, test: images, and their classes: int [N], or for several labels an image bool [N, C].
    counted: in test, for sets with several labels: which labels count, bool [N, C].
    metric: by which it is usually reported.
    differs: what the paper does not say.
  """

  name: str
  classes: list[str]
  train: Split
  test: Split
  metric: str = TOP1
  counted: np.ndarray | None = None
  differs: tuple[str, ...] = ()


def find(session: Session) -> Labelled:
  """The data set in a session's folder.

  Raises:
    LayoutError: none that is known, or files that do not fit it.
  """
  found = find_known(session)
  if found is not None:
    return found
  there = sorted(path.name for path in session.data.iterdir())[:5]
  raise LayoutError(f"{session.data} holds no data set that is known (it has {', '.join(there)}): "
                    f"wanted is one with {', '.join(READERS)}")


def find_known(session: Session) -> Labelled | None:
  """The same, but None if no data set that is known is there.

  Raises:
    LayoutError: files that do not fit the data set.
  """
  for marker, reader in READERS.items():
    found = reader(session) if (session.data / marker).exists() else None
    if found is None:
      continue
    for split, (paths, _) in (("training", found.train), ("test", found.test)):
      if not paths:
        raise LayoutError(f"{found.name} in {session.data} has no images of the {split} set")
    return found
  return None


def _lines(session: Session, name: str) -> list[list[str]]:
  """The words of each line that has any."""
  return [line.split() for line in session.path(name, name).read_text().splitlines()
          if line.strip()]


def _named(session: Session, folder: str, items: list[tuple[str, str]], classes: list[str]
           ) -> Split:
  """Images by their names below a folder, and their classes by name."""
  paths = [session.path(f"{folder}/{name}", f"{folder}/{name}") for name, _ in items]
  try:
    return paths, np.array([classes.index(label) for _, label in items])
  except ValueError as error:
    raise LayoutError(f"the lists in {session.data} name a class that is none: {error}") from error


def food(session: Session) -> Labelled:
  items = [[(f"{name}.jpg", name.split("/")[0]) for (name,) in
            _lines(session, f"food-101/meta/{split}.txt")] for split in ("train", "test")]
  classes = sorted({label for _, label in items[0]})
  return Labelled("Food-101", classes, *(_named(session, "food-101/images", own, classes)
                                         for own in items))


def cifar(session: Session) -> Labelled:
  """CIFAR-10 or CIFAR-100; its images are written into the cache, as files, once, in a folder that
  the bytes of its own files name: other sets have the same layout."""
  hundred = (session.data / "cifar-100-python").is_dir()
  folder, key = ("cifar-100-python", "fine_labels") if hundred else ("cifar-10-batches-py",
                                                                     "labels")
  files = [["train"], ["test"]] if hundred else [[f"data_batch_{i}" for i in range(1, 6)],
                                                 ["test_batch"]]
  splits, digest = [], hashlib.sha256()
  for name in itertools.chain(*files):
    with session.path(f"{folder}/{name}", folder).open("rb") as file:
      digest.update(hashlib.file_digest(file, "sha256").digest())
  for split, names in zip(("train", "test"), files):
    images, labels = [], []
    for name in names:
      found = plain_pickle.load(session.path(f"{folder}/{name}", folder))
      images.append(np.asarray(found["data"], np.uint8).reshape(-1, 3, 32, 32))
      labels += list(found[key])
    out = session.cache / f"{folder}-{digest.hexdigest()[:24]}" / split
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{i:05}.png" for i in range(len(labels))]
    for path, image in zip(paths, np.concatenate(images).transpose(0, 2, 3, 1)):
      if not path.exists():
        whole = path.with_suffix(".new")
        Image.fromarray(image).save(whole, "PNG")
        whole.replace(path)
    splits.append((paths, np.array(labels)))
  meta = plain_pickle.load(session.path(f"{folder}/{'meta' if hundred else 'batches.meta'}",
                                        folder))
  return Labelled("CIFAR-100" if hundred else "CIFAR-10",
                  list(meta["fine_label_names" if hundred else "label_names"]), *splits)


def sun(session: Session) -> Labelled:
  classes = [words[0] for words in _lines(session, "SUN397/ClassName.txt")]
  split = lambda name: _named(session, "SUN397", [
    (words[0].lstrip("/"), words[0].rsplit("/", 1)[0])
    for words in _lines(session, f"SUN397/{name}_01.txt")], classes)
  return Labelled("SUN397", classes, split("Training"), split("Testing"),
                  differs=("the first of SUN397's ten splits",))


def cars(session: Session) -> Labelled:
  read = lambda name: loadmat(session.path(f"devkit/{name}.mat", f"devkit/{name}.mat"),
                              squeeze_me=True)
  splits = []
  for folder, name in (("cars_train", "cars_train_annos"),
                       ("cars_test", "cars_test_annos_withlabels")):
    rows = np.atleast_1d(read(name)["annotations"])
    splits.append(([session.path(f"{folder}/{row['fname']}", folder) for row in rows],
                   np.array([int(row["class"]) - 1 for row in rows])))
  return Labelled("Stanford Cars", np.atleast_1d(read("cars_meta")["class_names"]).tolist(),
                  *splits)


def aircraft(session: Session) -> Labelled:
  folder = "fgvc-aircraft-2013b/data"
  items = [[(f"{words[0]}.jpg", " ".join(words[1:])) for words in
            _lines(session, f"{folder}/images_variant_{split}.txt")]
           for split in ("trainval", "test")]
  classes = sorted({label for _, label in items[0]})
  return Labelled("FGVC Aircraft", classes, *(_named(session, f"{folder}/images", own, classes)
                                              for own in items), PER_CLASS)


def voc(session: Session) -> Labelled:
  """VOC 2007, several labels an image; what is marked as difficult does not count in the test."""
  folder = "VOCdevkit/VOC2007"
  lists = session.path(f"{folder}/ImageSets/Main", folder)
  classes = sorted(path.name.rsplit("_", 1)[0] for path in lists.glob("*_trainval.txt"))
  splits, counted = [], None
  for split in ("trainval", "test"):
    tables = [dict(_lines(session, f"{folder}/ImageSets/Main/{name}_{split}.txt"))
              for name in classes]
    if not tables or any(own.keys() != tables[0].keys() for own in tables):
      raise LayoutError(f"the lists of {split} in {lists} do not name the same images for all "
                        "classes")
    values = np.array([[int(own[name]) for own in tables] for name in tables[0]])
    splits.append(([session.path(f"{folder}/JPEGImages/{name}.jpg", folder) for name in tables[0]],
                   values > 0))
    counted = values != 0
  return Labelled("VOC2007", classes, *splits, MAP, counted)


def dtd(session: Session) -> Labelled:
  read = lambda split: [(name, name.split("/")[0]) for (name,) in
                        _lines(session, f"dtd/labels/{split}1.txt")]
  train = read("train") + read("val")
  classes = sorted({label for _, label in train})
  return Labelled("DTD", classes, *(_named(session, "dtd/images", own, classes)
                                    for own in (train, read("test"))),
                  differs=("the first of DTD's ten splits",))


def pets(session: Session) -> Labelled:
  items = [[(f"{words[0]}.jpg", words[0].rsplit("_", 1)[0]) for words in
            _lines(session, f"oxford-iiit-pet/annotations/{split}.txt")
            if not words[0].startswith("#")] for split in ("trainval", "test")]
  classes = sorted({label for _, label in items[0]})
  return Labelled("Oxford Pets", classes, *(_named(session, "oxford-iiit-pet/images", own, classes)
                                            for own in items), PER_CLASS)


def caltech(session: Session) -> Labelled:
  folder = session.data / "101_ObjectCategories"
  classes = [name for name in classes_of(folder) if name != "BACKGROUND_Google"]
  images, labels = images_of(folder, classes, others=True)
  order = np.random.default_rng(0).permutation(len(images))
  train = np.sort(np.concatenate([order[labels[order] == i][:CALTECH_TRAIN]
                                  for i in range(len(classes))]))
  test = np.setdiff1d(np.arange(len(images)), train)
  pick = lambda places: ([pathlib.Path(images[i]) for i in places], labels[places])
  return Labelled("Caltech101", classes, pick(train), pick(test), PER_CLASS, differs=(
    f"{CALTECH_TRAIN} images of each class, drawn by a seed, are Caltech101's training set",))


def flowers(session: Session) -> Labelled:
  read = lambda name: loadmat(session.path(f"flowers-102/{name}.mat", f"flowers-102/{name}.mat"),
                              squeeze_me=True)
  sets, labels = read("setid"), read("imagelabels")["labels"].astype(int) - 1
  split = lambda *names: (
    [session.path(f"flowers-102/jpg/image_{i:05}.jpg", "flowers-102/jpg")
     for name in names for i in np.atleast_1d(sets[name])],
    np.concatenate([labels[np.atleast_1d(sets[name]) - 1] for name in names]))
  return Labelled("Flowers102", [str(i + 1) for i in range(labels.max() + 1)],
                  split("trnid", "valid"), split("tstid"), PER_CLASS)


def cub(session: Session) -> Labelled:
  folder = "CUB_200_2011"
  table = lambda name: dict(words[:2] for words in _lines(session, f"{folder}/{name}.txt"))
  images, labels, train = (table(name) for name in (
    "images", "image_class_labels", "train_test_split"))
  split = lambda kind: (
    [session.path(f"{folder}/images/{path}", folder) for i, path in images.items()
     if train[i] == kind],
    np.array([int(labels[i]) - 1 for i in images if train[i] == kind]))
  return Labelled("CUB-200", list(table("classes").values()), split("1"), split("0"))


def places(session: Session) -> Labelled:
  splits = []
  for split in ("train", "val"):
    rows = list(csv.reader(session.path(f"trainvalsplit_places205/{split}_places205.csv",
                                        "trainvalsplit_places205").open(), delimiter=" "))
    splits.append(([session.path(f"images256/{name}", "images256/a/abbey/*.jpg")
                    for name, _ in rows], np.array([int(label) for _, label in rows])))
  count = int(splits[0][1].max()) + 1 if len(splits[0][1]) else 0
  return Labelled("Places205", [str(i) for i in range(count)], *splits)


def inaturalist(session: Session) -> Labelled | None:
  """2018 (`train2018.json`, names below `train_val2018/`) or 2021 (`train.json`); None where the
  file of such a name is something else, as people keep many a thing beside class folders."""
  of_2018 = (session.data / "train2018.json").exists()
  splits, names = [], {}
  for split in ("train", "val"):
    file = f"{split}2018.json" if of_2018 else f"{split}.json"
    try:
      found = json.loads(session.path(file, file).read_bytes())
    except (ValueError, RecursionError):
      found = None
    if not isinstance(found, dict) or not found.keys() >= {"images", "annotations", "categories"}:
      if not splits:
        return None
      raise LayoutError(f"{session.data / file} is none of iNaturalist's files, as that of train "
                        "is: it has no images, annotations and categories")
    labels = {item["image_id"]: item["category_id"] for item in found["annotations"]}
    names |= {item["id"]: str(item["name"]) for item in found["categories"]}
    splits.append(([session.path(item["file_name"], file) for item in found["images"]],
                   np.array([labels[item["id"]] for item in found["images"]])))
  return Labelled("iNaturalist 2018" if of_2018 else "iNaturalist 2021",
                  [names.get(i, str(i)) for i in range(max(names) + 1)], *splits)


READERS: dict[str, Callable[[Session], Labelled | None]] = {  # by a file or folder that tells them
  "food-101": food, "cifar-10-batches-py": cifar, "cifar-100-python": cifar, "SUN397": sun,
  "cars_train": cars, "fgvc-aircraft-2013b": aircraft, "VOCdevkit/VOC2007": voc, "dtd": dtd,
  "oxford-iiit-pet": pets, "101_ObjectCategories": caltech, "flowers-102": flowers,
  "CUB_200_2011": cub, "trainvalsplit_places205": places, "train2018.json": inaturalist,
  "train.json": inaturalist}
