"""Linear depth on any data set of images with depth maps: training, prediction, figures."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dinov3_jax.data.crops import resize
from dinov3_jax.data.decode import decode
from dinov3_jax.evals import dense_probe, depth, one_cycle, sliding
from dinov3_jax.evals.framing import normalize
from dinov3_jax.evals.pca import grid, heatmap
from dinov3_jax.evals.probe_training import drawn
from dinov3_jax.evals.session import LayoutError, Result, Session, whole

NEAREST, BINS = 1e-3, 256  # metres; outputs of the probe
STEPS, WARMUP, BATCH, CLIP = 38400, 12800, 16, 35.0
PLAIN = 100  # steps without the loss's variance
Pairs = list[tuple[pathlib.Path, pathlib.Path]]


@dataclasses.dataclass(frozen=True)
class DepthSet:
  """A data set.

  Attributes:
    train, test: images and their depth files.
    read: a depth file as metres float32 [H, W], 0 where there is none.
    farthest: metres; what lies farther does not count.
    region: (height, width) to the pixels of a test image that count, bool.
    window: (height, width) to the first row, the row after the last one, the first and last column
      in which training crops lie, and to their height and width, before these become whole patches.
    frame: an image and its depth as both are looked at; None: as they are stored.
  """

  train: Pairs
  test: Pairs
  read: Callable[[pathlib.Path], np.ndarray]
  farthest: float
  region: Callable[[int, int], np.ndarray]
  window: Callable[[int, int], tuple[tuple[int, int, int, int], tuple[int, int]]]
  frame: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None

  def load(self, pair: tuple[pathlib.Path, pathlib.Path]) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 [H, W, 3] and its depth float32 [H, W].

    Raises:
      LayoutError: they are of different sizes.
    """
    image, truth = decode(pair[0], pair[0]), self.read(pair[1])
    if image.shape[:2] != truth.shape:
      raise LayoutError(f"{pair[0]} is of {image.shape[:2]} pixels, its depth of {truth.shape}")
    return self.frame(image, truth) if self.frame else (image, truth)


def read_depth(path: pathlib.Path, unit: float) -> np.ndarray:
  """Metres float32 [H, W] of a PNG of 16 bits; 0 where there is none.

  Args:
    unit: of the file, so many a metre.

  Raises:
    LayoutError: a file of other than 16 bits.
  """
  with Image.open(path) as image:
    if not image.mode.startswith("I"):
      raise LayoutError(f"{path} has the mode {image.mode}: depth is a PNG of 16 bits, {unit:g} of "
                        "whose steps are a metre")
    return np.asarray(image, np.float32) / unit


def evaluate(session: Session, data: DepthSet) -> Result:
  """The paper's grid of rates and decays; the best probe by the RMSE of the test set.

  `RMSE of a constant` is that of the median depth of the training images everywhere.
  """
  steps = session.steps or STEPS
  options, changed = session.options(rate_factor=1.0)
  train, test = session.some(data.train), session.some(data.test)
  schedule, betas = one_cycle.depth(options.rate_factor, steps, WARMUP * steps // STEPS)
  kept = session.kept("depth", (data.farthest, steps, options),
                      (path for pair in train for path in pair))
  probe = dense_probe.train(
    batches(session, data, train, start=kept.step), schedule, BINS, loss_of(data.farthest),
    betas=betas, dropout=0, clip=CLIP, mesh=session.mesh, kept=kept)
  constant = float(np.median([np.median(truth[truth > 0]) for truth in (
      data.load(pair)[1] for pair in train[:64]) if (truth > 0).any()]))
  found, flat, cells = [[] for _ in probe.rates], [], []
  for pair in session.each(test, "images"):
    image, truth = data.load(pair)
    valid = depth.valid_pixels(truth, NEAREST, data.farthest, data.region(*truth.shape))
    maps = predict(session, probe, image, truth.shape, data.farthest)
    for own, predicted in zip(found, maps):
      own.append(depth.figures(predicted, truth, valid))
    flat.append(depth.figures(np.full_like(truth, constant), truth, valid)["rmse"])
    if len(cells) < 6:
      cells.append((image, truth, maps))
  rmse = [float(np.mean([x["rmse"] for x in own])) for own in found]
  best = int(np.argmin(rmse))
  size = tuple(120 * side // min(cells[0][1].shape) for side in cells[0][1].shape)
  shown = lambda x: np.asarray(Image.fromarray(x).resize(size[::-1]))
  colour = lambda x: shown((255 * heatmap(x, 0, data.farthest)).astype(np.uint8))
  picture = grid([[shown(image), colour(truth), colour(maps[best])]
                  for image, truth, maps in cells], columns=2)
  names = {"rmse": "RMSE", "abs_rel": "AbsRel", "a1": "within 1.25"}
  return Result(
    {name: float(np.mean([x[key] for x in found[best]])) for key, name in names.items()}
    | {"RMSE of a constant": float(np.mean(flat))},
    dict(steps=steps, batch=min(BATCH, len(train)), bins=BINS, train=len(train), test=len(test),
         best=dict(rate=options.rate_factor * float(probe.rates[best]),
                   decay=float(probe.decays[best])), farthest=data.farthest, flipped_too=True),
    ["no rotation and no changes of colour in training"]
    + changed + [f"{steps} steps, not {STEPS}"] * (steps != STEPS)
    + [f"{session.limit} images of each split"] * (session.limit is not None),
    pictures={"depth.png": picture})


def loss_of(farthest: float) -> dense_probe.Loss:
  """The probe's loss at the resolution of the truth [B, H, W]; of the first steps without variance.
  """
  def loss(outputs: jax.Array, truth: jax.Array, step: jax.Array) -> jax.Array:
    found = depth.from_bins(outputs, NEAREST, farthest)
    found = sliding.resize(found[..., None], *truth.shape[1:])[..., 0]
    valid = depth.valid_pixels(truth, NEAREST, farthest)
    return depth.sig_loss(found, truth, valid, step >= PLAIN)

  return loss


def batches(session: Session, data: DepthSet, pairs: Pairs, seed: int = 0, start: int = 0
            ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Endless batches of patches [B, h, w, D] and depths [B, H, W] of random crops, half flipped,
  from the step `start` on.
  """
  for step in itertools.count(start):
    session.check_stop()
    chosen, rng = drawn(len(pairs), min(BATCH, len(pairs)), step, seed)
    images, depths = zip(*[crop(data, *data.load(pairs[i]), rng, session.patch) for i in chosen])
    x = normalize(np.stack(images), session.prepare.mean, session.prepare.std)
    yield np.asarray(session.run(x)), np.stack(depths)


def crop(data: DepthSet, image: np.ndarray, truth: np.ndarray, rng: np.random.Generator, patch: int
         ) -> tuple[np.ndarray, np.ndarray]:
  """A random crop of an image and its depth, both of whole patches, within the set's window."""
  (top, bottom, left, right), sides = data.window(*truth.shape)
  height, width = (max(side // patch, 1) * patch for side in sides)
  y, x = (int(rng.integers(start, max(end - side, start) + 1))
          for start, end, side in ((top, bottom, height), (left, right, width)))
  image, truth = image[y:y + height, x:x + width], truth[y:y + height, x:x + width]
  return (image[:, ::-1], truth[:, ::-1]) if rng.random() < 0.5 else (image, truth)


def predict(session: Session, probe: dense_probe.Probe, image: np.ndarray, shape: tuple[int, int],
            farthest: float) -> list[np.ndarray]:
  """Depth float32 of `shape` by each probe: the mean over the image and its mirror image.

  The image is filled up with zeros to whole patches, evenly on both sides.
  """
  if image.shape[:2] != tuple(shape):
    image = resize(image, *shape)
  x = normalize(image, session.prepare.mean, session.prepare.std)
  padding = [(whole(side, session.patch) - side) for side in shape]
  around = [(extra // 2, extra - extra // 2) for extra in padding]
  x = np.pad(x, (*around, (0, 0)))
  tokens = jnp.asarray(session.run(np.stack([x, x[:, ::-1]])))
  result = []
  for head in range(len(probe.rates)):
    found = depth.from_bins(probe.outputs(tokens, head), NEAREST, farthest)[..., None]
    found = sliding.resize(found, *x.shape[:2])[..., 0]
    found = np.asarray((found[0] + found[1, :, ::-1]) / 2)
    (top, _), (left, _) = around
    result.append(np.clip(found[top:top + shape[0], left:left + shape[1]], NEAREST, farthest))
  return result
