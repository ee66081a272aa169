"""Classification of videos with an attentive probe: UCF101, SSv2, Kinetics."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from PIL import Image, ImageDraw

from dinov3_jax.data.decode import DamagedImage
from dinov3_jax.data.walk import printable
from dinov3_jax.evals import attentive, clips
from dinov3_jax.evals.clip_lists import Split, find
from dinov3_jax.evals.framing import normalize
from dinov3_jax.evals.pca import grid
from dinov3_jax.evals.probe_training import drawn
from dinov3_jax.evals.session import Result, Session

FRAMES, SIZE = 16, 256  # paper D.6: of a clip; pixels at a patch of 16
EPOCHS, BATCH = 20, 64
HELD = 0.1  # share of the training videos that choose the probe
VIEWS = (3, 2)  # squares along the longer side, and sets of frames that interleave
SHAPE = attentive.Shape()
PAPER = {"vit7b16": {"UCF101": 93.5, "UCF101, 6 views": 93.5, "SSv2": 70.1, "SSv2, 6 views": 70.8,
                     "K400": 87.8, "K400, 6 views": 88.2}}  # table 6
View = tuple[np.ndarray, np.ndarray]  # frames uint8 [T, S, S, 3], times [T]


def run(session: Session) -> Result:
  """The grid's best probe on a tenth of the training videos, carried to the validation set."""
  name, classes, train, val = find(session)
  train, val = (split.of(session.some(range(len(split)))) for split in (train, val))
  size = session.side(SIZE)
  own, changed = session.options(frames=FRAMES, batch=BATCH, **SHAPE.__dict__)
  shape = attentive.Shape(own.width, own.heads, own.blocks, own.ratio)
  order = np.random.default_rng(0).permutation(len(train))
  held = min(max(round(HELD * len(train)), 1), len(train) - 1)
  choosing, fitting = train.of(order[:held]), train.of(order[held:])
  batch = min(own.batch, len(fitting))
  steps = session.steps or EPOCHS * (len(fitting) // batch)
  kept = session.kept("actions", (size, steps, batch, own.frames, shape, fitting.labels.tolist()),
                      fitting.paths)
  seen = batches(session, fitting, size, own.frames, batch, start=kept.step)
  probes = attentive.train(_features(session, seen), steps, len(classes), shape=shape,
                           mesh=session.mesh, kept=kept)
  scores = [(probes.probabilities(*_tokens(session, views[:1])).argmax(-1)[:, 0] == label)
            for views, label in _seen(session, choosing, size, own.frames, (1, 1))]
  accuracy = _mean(scores, "training videos that choose the probe")
  best = int(np.argmax(accuracy))
  found, cells = [], []
  for views, label in _seen(session, val, size, own.frames, VIEWS):
    probabilities = probes.probabilities(*_tokens(session, views), best)
    single, all_views = probabilities[0].argmax(), probabilities[1:].mean(0).argmax()
    found.append((single == label, all_views == label))
    if len(cells) < 8:
      cells.append(strip(views[0][0], classes[single], classes[label]))
  single, many = 100 * _mean(found, "validation videos")
  views = VIEWS[0] * VIEWS[1]
  return Result(
    {name: float(single), f"{name}, {views} views": float(many)},
    dict(frames=own.frames, size=size, steps=steps, batch=batch, classes=len(classes), views=views,
         probe=shape.__dict__, train=len(fitting), choosing=len(choosing), val=len(found),
         chosen_with=100 * float(accuracy[best]),
         best=dict(rate=float(probes.rates[best]), decay=float(probes.decays[best]))),
    ["the probe's heads, its MLP, its first weights and AdamW's cosine are V-JEPA 2's: the paper "
     "does not say them"] + changed
    + ["the first of UCF101's three splits: the paper does not say which"] * (name == "UCF101")
    + [f"frames of {size} pixels, not {SIZE}"] * (size != SIZE)
    + [f"{steps} steps, not {EPOCHS} epochs"] * (session.steps is not None)
    + [f"{session.limit} videos of each split"] * (session.limit is not None), PAPER,
    {f"{name}.png": grid([[cell] for cell in cells], columns=1)})


def views_of(path, size: int, frames: int = FRAMES, views: tuple[int, int] = VIEWS) -> list[View]:
  """The single view of a video, then those of each square and each set of frames.

  The sets interleave: of `frames` times their number evenly spaced ones, the first set has the
  first, the second set the second, and so on.

  Raises:
    DamagedImage: it cannot be read.
  """
  times = clips.frame_times(path)
  squares, sets = views
  chosen = clips.spaced(len(times), frames)
  many = clips.spaced(len(times), frames * sets)
  every = np.unique(np.concatenate([chosen, many]) if views != (1, 1) else chosen)
  found = dict(zip(every, clips.read_frames(path, times[every])))
  share = clips.shares(times)
  result = [(np.stack([clips.squares(found[i], size)[0] for i in chosen]), share[chosen])]
  if views == (1, 1):
    return result
  cut = {i: clips.squares(found[i], size, squares) for i in np.unique(many)}
  for place in range(squares):
    for own in (many[first::sets] for first in range(sets)):
      result.append((np.stack([cut[i][place] for i in own]), share[own]))
  return result


def training_view(path, size: int, frames: int, rng: np.random.Generator) -> View:
  """Random frames of the whole video, one random window of all of them; never mirrored, for some
  actions differ from others by their direction.

  Raises:
    DamagedImage: it cannot be read.
  """
  times = clips.frame_times(path)
  chosen = clips.drawn(len(times), frames, rng)
  found = clips.read_frames(path, times[chosen])
  return np.stack(clips.random_square(found, size, rng)), clips.shares(times)[chosen]


def batches(session: Session, split: Split, size: int, count: int, batch: int, seed: int = 0,
            start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Endless batches of training views: frames uint8 [B, T, S, S, 3], times [B, T], labels [B], from
  the step `start` on.

  T is `count`, S is `size`, B is `batch`. Every video comes once an epoch, in a new order each. One
  that cannot be read is left out, and another one of the batch stands in for it.

  Raises:
    DamagedImage: none of a batch can be read.
  """
  def read(index, seed):
    if str(split.paths[index]) in session.left_out:
      return None
    try:
      return *training_view(split.paths[index], size, count, np.random.default_rng(seed)), index
    except DamagedImage as error:
      _leave_out(session, error)
      return error

  with ThreadPoolExecutor() as threads:
    for step in itertools.count(start):
      session.check_stop()
      chosen, rng = drawn(len(split), batch, step, seed)
      found = list(threads.map(read, chosen, rng.integers(0, 2**32, batch)))
      good = [item for item in found if isinstance(item, tuple)]
      if not good:
        raise next((item for item in found if item is not None), None) or DamagedImage(
            str(split.paths[chosen[0]]), "nor can the other videos of its batch")
      frames, times, own = zip(*[good[i % len(good)] for i in range(batch)])
      yield np.stack(frames), np.stack(times), split.labels[list(own)].astype(np.int32)


def strip(frames: np.ndarray, found: str, truth: str) -> np.ndarray:
  """Eight frames of a view in a row, what they are taken for, and what they are."""
  shown = frames[clips.spaced(len(frames), 8)]
  small = [np.asarray(Image.fromarray(frame).resize((96, 96))) for frame in shown]
  picture = Image.fromarray(np.concatenate([np.full((18, 768, 3), 255, np.uint8),
                                            np.concatenate(small, 1)]))
  text = found if found == truth else f"{found}, but it is {truth}"
  ImageDraw.Draw(picture).text((4, 3), text, fill="green" if found == truth else "red")
  return np.asarray(picture)


def _seen(session: Session, split: Split, size: int, frames: int, views: tuple[int, int]
          ) -> Iterator[tuple[list[View], int]]:
  """The views and the class of each video that can be read; two more are read meanwhile."""
  with ThreadPoolExecutor(2) as threads:
    reading = {}
    for i in session.each(range(len(split)), "videos"):
      for j in range(i, min(i + 3, len(split))):
        if j not in reading:
          reading[j] = threads.submit(views_of, split.paths[j], size, frames, views)
      try:
        yield reading[i].result(), split.labels[i]
      except DamagedImage as error:
        _leave_out(session, error)
      reading[i] = None


def _mean(found: list, what: str) -> np.ndarray:
  if not found:
    raise ValueError(f"none of the {what} can be read")
  return np.mean(found, 0)


def _leave_out(session: Session, error: DamagedImage):
  session.left_out.setdefault(printable(error.name), error.reason)


def _features(session: Session, views):
  for frames, times, labels in views:
    yield _patches(session, frames), times, labels


def _tokens(session: Session, views: list[View]):
  frames, times = (np.stack(x) for x in zip(*views))
  return _patches(session, frames), times


def _patches(session: Session, frames: np.ndarray) -> jax.Array:
  """float32 [B, T, h, w, D] of frames uint8 [B, T, S, S, 3]."""
  flat = frames.reshape(-1, *frames.shape[2:])
  parts = []
  for start in range(0, len(flat), session.batch_size):
    some = flat[start:start + session.batch_size]
    images = np.zeros((session.batch_size, *flat.shape[1:]), np.float32)  # one program for all
    images[:len(some)] = normalize(some, session.prepare.mean, session.prepare.std)
    parts.append(np.asarray(session.run(images))[:len(some)])
  x = np.concatenate(parts)
  return x.reshape(*frames.shape[:2], *x.shape[1:])
