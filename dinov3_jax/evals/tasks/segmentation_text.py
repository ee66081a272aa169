"""Open-vocabulary segmentation: every patch goes to the class whose name is nearest."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dinov3_jax.data.crops import resize
from dinov3_jax.data.decode import decode
from dinov3_jax.evals import segmentation, sliding
from dinov3_jax.evals.drawing import overlay
from dinov3_jax.evals.framing import normalize
from dinov3_jax.evals.pca import grid
from dinov3_jax.evals.session import LayoutError, Result, Session, whole
from dinov3_jax.evals.tasks.segmenting import CLASSES, find, labels_of
from dinov3_jax.text.zeroshot import class_features, prompts

SIZE, WINDOW, STRIDE = 512, 384, 192  # of the reference's notebook
PAPER = {"vitl16": {"ADE20K mIoU": 24.7, "Cityscapes mIoU": 36.9}}  # table 16
NAMES = {
  "VOC2012": ("background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, "
              "dining table, dog, horse, motorbike, person, potted plant, sheep, sofa, train, "
              "television monitor"),
  "Cityscapes": ("road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, "
                 "vegetation, terrain, sky, person, rider, car, truck, bus, train, motorcycle, "
                 "bicycle")}
ADE_TABLE = "ADEChallengeData2016/objectInfo150.txt"


def run(session: Session) -> Result:
  """The short side at 512 pixels, windows of 384 every 192, their softmaxes averaged."""
  name, splits = find(session)
  names = names_of(session, name)
  texts = jnp.asarray(class_features(
    lambda texts: session.model.encode_text(texts)["patches"], names, prompts()))
  size = session.size or SIZE
  window, stride = (max(side * size // SIZE, session.patch) for side in (WINDOW, STRIDE))
  total, cells = np.zeros((4, CLASSES[name]), np.int64), []
  pairs = session.some(splits["val"])
  for image_path, label_path in session.each(pairs, "images"):
    labels, image = labels_of(name, label_path), decode(image_path, image_path)
    found = predict(session, texts, image, size, window, stride, labels.shape)
    total += segmentation.areas(found, labels, CLASSES[name])
    if len(cells) < 8:
      shown = lambda x: resize(x, 192, 192)
      cells.append([shown(overlay(image, np.where(y == segmentation.IGNORE, 0, y)))
                    for y in (labels, found)])
  figures = segmentation.figures(total)
  return Result(
    {f"{name} mIoU": 100 * figures["mIoU"], f"{name} aAcc": 100 * figures["aAcc"]},
    dict(size=size, window=window, stride=stride, images=len(pairs), classes=CLASSES[name],
         templates=len(prompts())),
    [f"images of {size} pixels, not {SIZE}"] * (size != SIZE)
    + [f"{session.limit} images"] * (session.limit is not None),
    PAPER, {f"{name}.png": grid(cells, columns=2)})


def predict(session: Session, texts: jax.Array, image: np.ndarray, size: int, window: int,
            stride: int, shape: tuple[int, int]) -> np.ndarray:
  """The class of every pixel, uint8 of `shape`.

  Args:
    session: with a model of text.
    texts: [K, E/2], of the classes.
    image: uint8 [H, W, 3].
    size: of the short side, pixels.
    window, stride: of the windows, pixels.
    shape: (height, width) of the result.
  """
  short = min(image.shape[:2])
  height, width = (max(round(side * size / short), size) for side in image.shape[:2])
  x = normalize(resize(image, height, width), session.prepare.mean, session.prepare.std)

  def likely(part: jax.Array) -> jax.Array:
    """The softmax of the cosines of a window's patches, whose sides become whole patches."""
    sides = [whole(side, session.patch) for side in part.shape[1:3]]
    part = jax.image.resize(part, (1, *sides, 3), "cubic", antialias=True)
    shards = session.model.shards
    patches = session.model.encode_image(np.repeat(part, shards, axis=0))["patches"][:1]
    rows, columns = (side // session.patch for side in sides)
    return jax.nn.softmax(patches @ texts.T, axis=-1).reshape(1, rows, columns, -1)

  return sliding.predict(likely, x, window, stride, shape).argmax(-1).astype(np.uint8)


def names_of(session: Session, name: str) -> list[str]:
  """What the classes of a data set are called; of ADE20K the first word of each in its own table.

  Raises:
    LayoutError: ADE20K's table is missing, or no table of 150 classes.
  """
  if name in NAMES:
    return NAMES[name].split(", ")
  path: pathlib.Path = session.path(ADE_TABLE, "ADE20K with objectInfo150.txt")
  rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:] if line]
  names = [row[-1].split(",")[0].strip() for row in rows]
  if len(names) != CLASSES[name]:
    raise LayoutError(f"{path} has {len(names)} classes, not {CLASSES[name]}")
  return names
