"""Linear depth on NYUv2: RMSE in metres."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dinov3_jax.data.crops import resize
from dinov3_jax.data.decode import decode
from dinov3_jax.evals import dense_probe, depth, one_cycle, sliding
from dinov3_jax.evals.framing import normalize
from dinov3_jax.evals.pca import grid, heatmap
from dinov3_jax.evals.session import LayoutError, Result, Session, whole

NEAREST, FARTHEST, BINS = 1e-3, 10.0, 256  # metres
STEPS, WARMUP, BATCH, CLIP = 38400, 12800, 16, 35.0
PLAIN = 100  # steps without the loss's variance
EDGES = (45, 472, 43, 608)  # of training images: beyond these rows and columns NYU's are white
CROP = (416, 544)
LAYOUT = ("nyu_train.txt and nyu_test.txt with lines of an image, its depth (16-bit PNG in "
          "millimetres) and a focal length, as BTS and AdaBins pack it")
PAPER = {name: {"RMSE": value} for name, value in dict(  # metres
  vits16=0.403, vits16plus=0.399, vitb16=0.373, vitl16=0.352, vith16plus=0.352, vit7b16=0.309,
  convnext_tiny=0.448, convnext_small=0.432, convnext_base=0.420, convnext_large=0.403).items()}
Pairs = list[tuple[pathlib.Path, pathlib.Path]]


def read_list(session: Session, name: str) -> Pairs:
  """The images and depth files of a list, sorted.

  Raises:
    LayoutError: a line of another form, or a file that is not there.
  """
  pairs = []
  for line in sorted(session.path(name, LAYOUT).read_text().splitlines()):
    columns = line.split()
    if columns and columns[1:2] != ["None"]:  # images without depth
      if len(columns) < 2:
        raise LayoutError(f"{name} has a line {line!r}: wanted is {LAYOUT}")
      pairs.append(tuple(session.data / column.lstrip("/") for column in columns[:2]))
  for path in (path for pair in pairs for path in pair):
    if not path.exists():
      raise LayoutError(f"{path} is in {name}, but it is not there")
  if not pairs:
    raise LayoutError(f"{name} names no images: wanted is {LAYOUT}")
  return pairs


def read_depth(path: pathlib.Path) -> np.ndarray:
  """Metres float32 [H, W] of a PNG of 16 bits in millimetres; 0 where there is none.

  Raises:
    LayoutError: a file of other than 16 bits.
  """
  with Image.open(path) as image:
    if not image.mode.startswith("I"):
      raise LayoutError(f"{path} has the mode {image.mode}: depth is a PNG of 16 bits, in "
                        "millimetres")
    return np.asarray(image, np.float32) / 1000


def loss(outputs: jax.Array, truth: jax.Array, step: jax.Array) -> jax.Array:
  """The probe's loss at the resolution of the truth [B, H, W]; of the first steps without variance.
  """
  found = depth.from_bins(outputs, NEAREST, FARTHEST)
  found = sliding.resize(found[..., None], *truth.shape[1:])[..., 0]
  valid = depth.valid_pixels(truth, NEAREST, FARTHEST)
  return depth.sig_loss(found, truth, valid, step >= PLAIN)


def run(session: Session) -> Result:
  """The paper's grid of rates and decays; the best probe by the RMSE of the test set."""
  steps = session.steps or STEPS
  train, test = (session.some(read_list(session, f"nyu_{name}.txt")) for name in ("train", "test"))
  rates, betas = one_cycle.depth(1.0, steps, WARMUP * steps // STEPS)
  probe = dense_probe.train(batches(session, train), rates, BINS, loss, betas=betas, dropout=0,
                            clip=CLIP, mesh=session.mesh)
  found, cells = [[] for _ in probe.rates], []
  for image_path, depth_path in session.each(test, "images"):
    image, truth = decode(image_path, image_path), read_depth(depth_path)
    region = depth.eigen_crop(*truth.shape)
    maps = predict(session, probe, image, truth.shape)
    for own, predicted in zip(found, maps):
      own.append(depth.figures(predicted, truth, depth.valid_pixels(
          truth, NEAREST, FARTHEST, region)))
    if len(cells) < 6:
      cells.append((image, truth, maps))
  rmse = [float(np.mean([x["rmse"] for x in own])) for own in found]
  best = int(np.argmin(rmse))
  shown = lambda x: np.asarray(Image.fromarray(x).resize((160, 120)))
  colour = lambda x: shown((255 * heatmap(x, 0, FARTHEST)).astype(np.uint8))
  picture = grid([[shown(image), colour(truth), colour(maps[best])]
                  for image, truth, maps in cells], columns=2)
  names = {"rmse": "RMSE", "abs_rel": "AbsRel", "a1": "within 1.25"}
  return Result(
    {name: float(np.mean([x[key] for x in found[best]])) for key, name in names.items()},
    dict(steps=steps, batch=min(BATCH, len(train)), bins=BINS, train=len(train), test=len(test),
         best=dict(rate=float(probe.rates[best]), decay=float(probe.decays[best])),
         flipped_too=True, region="Eigen"),
    ["no rotation and no changes of colour in training"]
    + [f"{steps} steps, not {STEPS}"] * (steps != STEPS)
    + [f"{session.limit} images of each split"] * (session.limit is not None), PAPER,
    {"depth.png": picture})


def batches(session: Session, pairs: Pairs, seed: int = 0
            ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Endless batches of patches [B, h, w, D] and depths [B, H, W] of random crops, half flipped."""
  rng = np.random.default_rng(seed)
  count = min(BATCH, len(pairs))
  while True:
    for chosen in np.array_split(rng.permutation(len(pairs)), len(pairs) // count):
      session.check_stop()
      images, depths = zip(*[crop(decode(image, image), read_depth(truth), rng, session.patch)
                             for image, truth in (pairs[i] for i in chosen[:count])])
      x = normalize(np.stack(images), session.prepare.mean, session.prepare.std)
      yield np.asarray(session.run(x)), np.stack(depths)


def crop(image: np.ndarray, truth: np.ndarray, rng: np.random.Generator, patch: int
         ) -> tuple[np.ndarray, np.ndarray]:
  """A random crop of an image and its depth, both of whole patches; at 480 x 640, 416 x 544.

  Raises:
    LayoutError: an image and a depth of different sizes.
  """
  if image.shape[:2] != truth.shape:
    raise LayoutError(f"an image of {image.shape[:2]} has a depth of {truth.shape}")
  scale = np.array(truth.shape) / (480, 640)
  top, bottom, left, right = (int(x * s) for x, s in zip(EDGES, scale.repeat(2)))
  height, width = (max(int(x * s) // patch, 1) * patch for x, s in zip(CROP, scale))
  y, x = (int(rng.integers(start, max(end - side, start) + 1))
          for start, end, side in ((top, bottom, height), (left, right, width)))
  image, truth = image[y:y + height, x:x + width], truth[y:y + height, x:x + width]
  return (image[:, ::-1], truth[:, ::-1]) if rng.random() < 0.5 else (image, truth)


def predict(session: Session, probe: dense_probe.Probe, image: np.ndarray, shape: tuple[int, int]
            ) -> list[np.ndarray]:
  """Depth float32 of `shape` by each probe: the mean over the image and its mirror image.

  The image is filled up with zeros to whole patches, evenly on both sides.
  """
  if image.shape[:2] != tuple(shape):
    image = resize(image, *shape)
  x = normalize(image, session.prepare.mean, session.prepare.std)
  padding = [(whole(side, session.patch) - side) for side in shape]
  around = [(extra // 2, extra - extra // 2) for extra in padding]
  x = np.pad(x, (*around, (0, 0)))
  tokens = jnp.concatenate([session.run(x[None]), session.run(x[None, :, ::-1])])
  result = []
  for head in range(len(probe.rates)):
    found = depth.from_bins(probe.outputs(tokens, head), NEAREST, FARTHEST)[..., None]
    found = sliding.resize(found, *x.shape[:2])[..., 0]
    found = np.asarray((found[0] + found[1, :, ::-1]) / 2)
    (top, _), (left, _) = around
    result.append(np.clip(found[top:top + shape[0], left:left + shape[1]], NEAREST, FARTHEST))
  return result
