"""Small data sets of single images: folders of classes, VOC, SPair-71k, Oxford, AmsterTime, Met,
and images with their foreground.
"""

import json
import pathlib
import pickle

import numpy as np
from PIL import Image

from dinov3_jax.evals.mini_canvas import background, compose, place, plain, save, save_labels


def folders(out: pathlib.Path, drawings, rng: np.random.Generator, train: int = 20, val: int = 10):
  """`train/CLASS` and `val/CLASS`: every drawing once, on white."""
  for label, name in enumerate(drawings.classes):
    own = rng.permutation(np.flatnonzero(drawings.labels == label))[:train + val]
    share = min(train, len(own) * train // (train + val))
    for i, index in enumerate(own):
      image, _ = compose(plain(112, 112), place(drawings[index], 0, rng.uniform(0.8, 1)), 8, 8)
      save(out / ("train" if i < share else "val") / name / f"{i:03}.jpg", image)


def voc(out: pathlib.Path, drawings, rng: np.random.Generator, train: int = 40, val: int = 20,
        boxes: int = 16):
  """VOC2012 for segmentation (the class is the category), VOC2007 with boxes for discovery."""
  def scene(height, width):
    index = int(rng.choice(np.flatnonzero(drawings.labels >= 0)))
    drawing = place(drawings[index], rng.uniform(-20, 20), rng.uniform(0.7, 1))
    left, top = (int(rng.integers(0, max(side - drawing.width, 1))) for side in (width, height))
    return index, *compose(background(rng, height, width), drawing, left, top)

  root = out / "VOCdevkit/VOC2012"
  (root / "ImageSets/Segmentation").mkdir(parents=True)
  for split, count in (("train", train), ("val", val)):
    names = [f"2012_{split}_{i:04}" for i in range(count)]
    for name in names:
      index, image, alpha = scene(112, 144)
      labels = np.where(alpha > 230, drawings.labels[index] + 1, np.where(alpha > 25, 255, 0))
      save(root / "JPEGImages" / f"{name}.jpg", image)
      save_labels(root / "SegmentationClass" / f"{name}.png", labels)
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
  root = out / "VOCdevkit/VOC2007"
  for folder in ("ImageSets/Main", "Annotations"):
    (root / folder).mkdir(parents=True)
  names = [f"{i:06}" for i in range(1, boxes + 1)]
  for name in names:
    index, image, alpha = scene(122, 165)
    rows, columns = (np.flatnonzero((alpha > 127).any(axis)) for axis in (1, 0))
    sides = dict(xmin=columns[0] + 1, ymin=rows[0] + 1, xmax=columns[-1] + 1, ymax=rows[-1] + 1)
    box = "".join(f"<{key}>{value}</{key}>" for key, value in sides.items())
    save(root / "JPEGImages" / f"{name}.jpg", image)
    (root / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><filename>{name}.jpg</filename><object><name>"
        f"{drawings.classes[drawings.labels[index]]}</name><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox>{box}</bndbox></object></annotation>")
  (root / "ImageSets/Main/trainval.txt").write_text("\n".join(names) + "\n")


def spair(out: pathlib.Path, drawings, rng: np.random.Generator, classes: int = 2, images: int = 4):
  """Views of one drawing a class; keypoints are the same places of it, under each view's map."""
  (out / "PairAnnotation/test").mkdir(parents=True)
  number = 0
  for label in range(classes):
    name = drawings.classes[label]
    drawing = drawings[int(rng.choice(np.flatnonzero(drawings.labels == label)))]
    opaque = np.argwhere(np.asarray(drawing)[..., 3] > 200)[:, ::-1]
    points = opaque[rng.choice(len(opaque), 6, replace=False)]
    views = []
    for i in range(images):
      degrees, scale = float(rng.uniform(-25, 25)), float(rng.uniform(0.8, 1.1))
      view, (height, width) = place(drawing, degrees, scale), rng.integers(110, 150, 2)
      left, top = (int(rng.integers(0, max(side - view.width, 1))) for side in (width, height))
      image, alpha = compose(background(rng, height, width), view, left, top)
      save(out / "JPEGImages" / name / f"view_{i}.jpg", image)
      angle, centre = np.radians(degrees), view.width / 2
      turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
      own = (points * view.width / drawing.width - centre) @ turn.T + centre + [left, top]
      rows, columns = (np.flatnonzero((alpha > 127).any(axis)) for axis in (1, 0))
      box = [int(x) for x in (columns[0], rows[0], columns[-1], rows[-1])]
      views.append((f"view_{i}.jpg", [int(width), int(height), 3], box,
                    np.round(own).astype(int).tolist()))
    for source in views:
      for target in views:
        if source is not target:
          pair = dict(category=name, viewpoint_variation=0)
          for key, own in (("src", source), ("trg", target)):
            pair |= {f"{key}_{what}": value for what, value in zip(
                ("imname", "imsize", "bndbox", "kps"), own)}
          stems = "-".join(own[0].split(".")[0] for own in (source, target))
          (out / f"PairAnnotation/test/{number:06}-{stems}:{name}.json").write_text(
              json.dumps(pair))
          number += 1


def oxford(out: pathlib.Path, drawings, rng: np.random.Generator, queries: int = 12,
           others: int = 24):
  """Easy views are turned a little, hard ones a lot, half as large and on a background; others
  match no query."""
  names, truth = [], []
  def add(index, name, degrees, scale):
    scene = background(rng, 120, 150) if scale < 0.9 else plain(120, 150)
    image, _ = compose(scene, place(drawings[index], degrees, scale), 20, 10)
    save(out / "jpg" / f"{name}.jpg", image)
    return name

  chosen = rng.choice(len(drawings), queries + others, replace=False)
  for i, index in enumerate(chosen[:queries]):
    add(index, f"query_{i:03}", 0, 1)
    own = dict(bbx=[20, 10, 116, 106], easy=[], hard=[], junk=[])
    for kind, count in (("easy", 2), ("hard", 2), ("junk", 1)):
      for j in range(count):
        turned = rng.uniform(-15, 15) if kind == "easy" else rng.uniform(40, 90)
        own[kind].append(len(names))
        names.append(add(index, f"{kind}_{i:03}_{j}", turned, 0.5 if kind == "hard" else 0.9))
    truth.append(own)
  names += [add(index, f"other_{i:03}", 0, 1) for i, index in enumerate(chosen[queries:])]
  with open(out / "gnd_roxford5k.pkl", "wb") as file:
    pickle.dump(dict(imlist=names, qimlist=[f"query_{i:03}" for i in range(queries)], gnd=truth),
                file)


def amstertime(out: pathlib.Path, drawings, rng: np.random.Generator, pairs: int = 24):
  """`new` in colour, `old` the same in grey, faded and shifted."""
  for i, index in enumerate(rng.choice(len(drawings), pairs, replace=False)):
    image, _ = compose(background(rng, 120, 140), drawings[int(index)], 20, 10)
    save(out / "new" / f"{i:04}.png", image)
    grey = np.asarray(Image.fromarray(np.roll(image, (4, -6), (0, 1))).convert("L"))
    faded = np.clip(90 + 0.5 * grey + rng.normal(0, 8, grey.shape), 0, 255).astype(np.uint8)
    save(out / "old" / f"{i:04}.jpg", np.repeat(faded[..., None], 3, 2))


def met(out: pathlib.Path, drawings, rng: np.random.Generator, works: int = 40, queries: int = 30):
  """Met: drawings are works of one to three views; visitors' photographs ask for them.

  A third of the photographs show no work: a drawing that the museum does not have, or none at all.
  """
  chosen = rng.choice(len(drawings), min(2 * works, len(drawings)), replace=False).tolist()
  owned, others = chosen[:works], chosen[works:]
  lists = {}

  def add(name, path, image, **entry):
    save(out / "images" / path, image)
    lists.setdefault(name, []).append(dict(path=path, **entry))

  for work, index in enumerate(owned):
    for view in range(1 + work % 3):
      drawing = place(drawings[index], rng.uniform(-5, 5), 0.9)
      image, _ = compose(np.full((112, 112, 3), 235, np.uint8), drawing, 10, 10)
      add("MET_database", f"MET/{work}/{view}.jpg", image, id=work)
  for name, count in (("valset", queries), ("testset", queries)):
    for i in range(count):
      photograph, work = background(rng, 120, 140), int(rng.integers(works))
      index = owned[work] if i % 3 else others[int(rng.integers(len(others)))]
      if i % 6:
        drawing = place(drawings[index], rng.uniform(-20, 20), rng.uniform(0.6, 0.9))
        photograph, _ = compose(photograph, drawing, *rng.integers(5, 40, 2).tolist())
      folder, entry = ("met", dict(MET_id=work)) if i % 3 else ("other", {})
      shade = rng.uniform(0.7, 1.1)
      add(name, f"{name}_{folder}/{i:03}.jpg",
          np.clip(photograph * shade, 0, 255).astype(np.uint8), **entry)
  (out / "ground_truth").mkdir()
  for name, entries in lists.items():
    (out / "ground_truth" / f"{name}.json").write_text(json.dumps(entries))


def foreground(out: pathlib.Path, drawings, rng: np.random.Generator, count: int = 8):
  """`images/NAME.jpg`, and `labels/NAME.png` whose alpha is the foreground."""
  for i in range(count):
    drawing = place(drawings[int(rng.choice(len(drawings)))], rng.uniform(-30, 30),
                    rng.uniform(0.6, 1))
    left, top = (int(rng.integers(0, side - drawing.width + 1)) for side in (144, 112))
    image, alpha = compose(background(rng, 112, 144), drawing, left, top)
    save(out / "images" / f"{i:02}.jpg", image)
    save(out / "labels" / f"{i:02}.png", np.concatenate([image, alpha[..., None]], 2))
