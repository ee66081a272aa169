"""Small sets in the layouts of ImageNet-1k and its other test sets: a class is a drawing.

All 1000 classes are there, for the folders of ObjectNet stand for numbered classes. Where there are
fewer drawings, the others are the same ones with their colours changed.
"""

import json
import pathlib

import numpy as np
from PIL import Image
from scipy import ndimage

from dinov3_jax.evals import objectnet
from dinov3_jax.evals.mini_canvas import background, compose, place, plain, save
from dinov3_jax.evals.mini_corruptions import CORRUPTIONS, corrupt

SIDE = 64  # of an image, pixels
V2 = "imagenetv2-matched-frequency-format-val"
STRANGE = ("air_freshener", "squeegee")  # folders of ObjectNet that are no classes of ImageNet


def imagenet(out: pathlib.Path, drawings, rng: np.random.Generator,
             classes: int = objectnet.CLASSES, train: int = 2, some: int = 200,
             corrupted: int = 20):
  """ImageNet-1k with V2, ReaL, A, R, Sketch, C and, if all classes are there, ObjectNet.

  Args:
    classes: how many.
    train: images of each for training.
    some: how many classes A and R have.
    corrupted: how many C has.
  """
  pictures = _pictures(drawings, classes)
  names = [f"n{number:08}" for number in np.sort(rng.choice(10**8, classes, replace=False))]

  def view(label, turn, least, most, behind=None):
    """A class's drawing, turned by so many degrees at most, so large a share of the image."""
    shown = place(pictures[label], rng.uniform(-turn, turn),
                  rng.uniform(least, most) * SIDE / pictures[label].width)
    left, top = rng.integers(0, SIDE - shown.width + 1, 2).tolist()
    behind = background(rng, SIDE, SIDE) if behind is None else behind
    return compose(behind, shown, left, top)[0]

  numbers = rng.permutation(classes) + 1  # of the validation images
  for label, name in enumerate(names):
    for i in range(train):
      save(out / "train" / name / f"{name}_{i}.JPEG", view(label, 15, 0.7, 1))
    save(out / "val" / name / f"ILSVRC2012_val_{numbers[label]:08}.JPEG", view(label, 15, 0.7, 1))
    save(out / V2 / str(label) / f"{label:04}.jpeg", view(label, 25, 0.6, 0.9))
    save(out / "sketch" / name / f"sketch_{label}.JPEG", sketch(
        view(label, 15, 0.7, 1, plain(SIDE, SIDE))))
  (out / "real.json").write_text(json.dumps(real(np.argsort(numbers).tolist(), classes)))
  for label in rng.permutation(classes)[:some].tolist():
    other = view(int(rng.integers(classes)), 90, 0.5, 0.7)
    save(out / "imagenet-a" / names[label] / "0.jpg", view(label, 60, 0.4, 0.6, other))
  for label in rng.permutation(classes)[:some].tolist():
    save(out / "imagenet-r" / names[label] / "art_0.jpg", rendition(view(label, 15, 0.7, 1), label))
  for label in rng.permutation(classes)[:corrupted].tolist():
    image = view(label, 15, 0.7, 1)
    for corruption in CORRUPTIONS:
      for level in range(1, 6):
        file = f"imagenet-c/{corruption}/{level}/{names[label]}/ILSVRC2012_val_{label:08}.JPEG"
        save(out / file, corrupt(image, corruption, level, rng))
  if classes == objectnet.CLASSES:
    folders = [(folder, rng.choice(own)) for folder, own in objectnet.FOLDERS.items()]
    for folder, label in [*folders, *((name, rng.integers(classes)) for name in STRANGE)]:
      image = np.full((SIDE + 2, SIDE + 2, 3), [255, 0, 0], np.uint8)
      image[1:-1, 1:-1] = view(int(label), 45, 0.6, 0.9)
      save(out / "objectnet-1.0/images" / folder / "0.png", image)


def _pictures(drawings, count: int) -> list[Image.Image]:
  """So many pictures; those after the last drawing are the drawings with other colours."""
  found = [drawings[i] for i in range(min(count, len(drawings)))]
  for i in range(len(found), count):
    red, green, blue, alpha = found[i % len(drawings)].split()
    channels = (green, blue, red) if i // len(drawings) % 2 else (blue, red, green)
    found.append(Image.merge("RGBA", (*channels, alpha)))
  return found


def real(labels: list[int], classes: int) -> list[list[int]]:
  """ReaL's lists: every tenth image has no label, every seventh has another one as well."""
  return [[] if i % 10 == 9 else [label, (label + 1) % classes] if i % 7 == 6 else [label]
          for i, label in enumerate(labels)]


def sketch(image: np.ndarray) -> np.ndarray:
  """Black edges on white, uint8 [H, W, 3]."""
  grey = image.mean(-1)
  edges = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
  return np.repeat((255 - np.clip(edges, 0, 255)).astype(np.uint8)[..., None], 3, 2)


def rendition(image: np.ndarray, kind: int) -> np.ndarray:
  """A painting with few colours, a grey print, or a negative, by the number `kind`."""
  grey = np.repeat(image.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
  return (image // 86 * 86 + 42, grey, 255 - image)[kind % 3]
