"""Pictures of patch features: principal components of images, a folder or a clip; foreground."""

import os

import numpy as np

from dinov3_jax.data.crops import resize
from dinov3_jax.data.decode import DamagedImage, decode
from dinov3_jax.data.walk import images_below, printable
from dinov3_jax.evals import classification, clips, components
from dinov3_jax.evals import logistic as regression
from dinov3_jax.evals.clip_lists import SUFFIXES
from dinov3_jax.evals.drawing import overlay
from dinov3_jax.evals.framing import read_alpha
from dinov3_jax.evals.pca import enlarge, grid
from dinov3_jax.evals.session import LayoutError, Result, Session

HEIGHT = 768  # of the notebooks; the width follows, in whole patches
SHOWN = 12  # images of a picture
CLIP = 16  # frames of a video that are shown
CS = tuple(np.logspace(-7, 0, 8).tolist())  # of the foreground; the notebook's
STRENGTH = 0.1  # of its last fit
CLEAR = 0.01  # a patch with a smaller share of the foreground, or of the rest, is clearly one thing
LAYOUT = "images/NAME.jpg and labels/NAME.png, whose alpha (or grey value) is the foreground"


def pca(session: Session) -> Result:
  """Three components as red, green and blue: of each image, shared by all of them, and of clips.

  The shared ones are of all images, of which the first are shown. With the option `skip` so many of
  the largest components are left out; figure 17 of the paper shows those after the first four.
  """
  size = session.side(HEIGHT)
  own, changed = session.options(skip=0)
  files = session.some(sorted(images_below(session.data)))
  videos = session.some(sorted(
    path for path in session.data.rglob("*") if path.suffix.lower() in SUFFIXES))
  if not files and not videos:
    raise LayoutError(f"{session.data} has neither images nor videos")
  pictures, shares = {}, {}

  def seen(image):
    """An image at the size of the notebooks, and its patches."""
    image = resize(image, *components.picture_size(*image.shape[:2], size, session.patch))
    return image, session.patches(image)

  def moments_of(patches):
    found = components.Moments(patches[0].shape[-1])
    for x in patches:
      found.add(x.reshape(-1, x.shape[-1]))
    return found

  def share(fitted, moments):
    return 100 * float(fitted.variance.sum() / moments.variance)

  def coloured(image, patches, fitted):
    """The image beside its components."""
    return np.concatenate([image, enlarge(fitted.rgb(patches), *image.shape[:2])], 1)

  together, alone, shown, count = None, [], [], 0
  for name in session.each(files, "images"):
    try:
      image, patches = seen(decode(session.data / name, session.data / name))
    except DamagedImage as error:
      session.left_out[printable(name)] = error.reason
      continue
    count += 1
    moments = moments_of([patches])
    together = together or components.Moments(patches.shape[-1])
    together.join(moments)
    fitted = moments.components(3, own.skip)
    alone.append(share(fitted, moments))
    if len(shown) < SHOWN:
      shown.append((image, patches, fitted))
  if count:
    shares["variance of the components, one image"] = float(np.mean(alone))
    pictures["alone.png"] = _stacked([coloured(*each) for each in shown])
  if count > 1:
    fitted = together.components(3, own.skip)
    shares["variance of the components, all images"] = share(fitted, together)
    pictures["shared.png"] = _stacked([coloured(x, y, fitted) for x, y, _ in shown])
  for video in session.each(videos, "videos"):
    name = video.relative_to(session.data)
    try:
      times = clips.frame_times(video)
      frames = clips.read_frames(video, times[clips.spaced(len(times), CLIP)])
    except DamagedImage as error:
      session.left_out[printable(name)] = error.reason
      continue
    images, patches = zip(*map(seen, frames))
    moments = moments_of(patches)
    fitted = moments.components(3, own.skip)
    shares[f"variance of the components, {printable(name)}"] = share(fitted, moments)
    pictures["-".join(name.with_suffix(".gif").parts)] = [
      coloured(x, y, fitted) for x, y in zip(images, patches)]
  if not pictures:
    raise ValueError(f"none of the {len(files)} images and {len(videos)} videos can be read")
  return Result(shares, dict(size=size, images=count, shown=len(shown), videos=len(videos),
                             skip=own.skip),
                changed + [f"images of {size} pixels, not {HEIGHT}"] * (size != HEIGHT),
                pictures=pictures)


def foreground(session: Session) -> Result:
  """The notebook's protocol: a logistic regression of single patches tells the foreground.

  Each image in turn is left out to measure the average precision over patches; the pictures have
  what a fit to all other images says of it. Patches on the border of the foreground, of which
  neither nearly all is covered nor nearly nothing, are left out of fits and figures.
  """
  size = session.side(HEIGHT)
  folder, labels = (session.path(name, LAYOUT) for name in ("images", "labels"))
  names = session.some(sorted(images_below(folder)))
  if len(names) < 2:
    raise LayoutError(f"{folder} has {len(names)} images, two or more are wanted: {LAYOUT}")
  images, features, shares = [], [], []
  for name in session.each(names, "images"):
    label = labels / f"{os.path.splitext(name)[0]}.png"
    if not label.exists():
      raise LayoutError(f"{label} is not there: wanted is {LAYOUT}")
    image = decode(folder / name, folder / name)
    height, width = components.picture_size(*image.shape[:2], size, session.patch)
    images.append(resize(image, height, width))
    features.append(session.patches(images[-1]))
    alpha = resize(np.repeat(read_alpha(label)[..., None], 3, 2), height, width)[..., 0]
    shares.append(components.patch_shares(alpha / 255, session.patch))
  rows = [x.reshape(-1, x.shape[-1]) for x in features]
  clear = [(x.ravel() < CLEAR) | (x.ravel() > 1 - CLEAR) for x in shares]
  truth = [x.ravel() > 0.5 for x in shares]

  def scores(strength, left_out):
    rest = [i for i in range(len(rows)) if i != left_out]
    model = regression.fit_binary(np.concatenate([rows[i][clear[i]] for i in rest]),
                                  np.concatenate([truth[i][clear[i]] for i in rest]), strength)
    return model.probabilities(rows[left_out])[:, 1]

  precision = [np.mean([
    classification.average_precision(scores(c, i)[clear[i]], truth[i][clear[i]])
    for i in range(len(rows))]) for c in CS]
  best, cells, overlaps = int(np.argmax(precision)), [], []
  for i, image in enumerate(images):
    found = components.foreground(scores(STRENGTH, i).reshape(features[i].shape[:2]))
    told, true = found.ravel()[clear[i]], truth[i][clear[i]]
    overlaps.append((told & true).sum() / max((told | true).sum(), 1))
    wide = np.kron(found, np.ones((session.patch, session.patch), int))
    cells.append([image, overlay(image, wide)])
  return Result(
    {"average precision": 100 * float(precision[best]), "IoU": 100 * float(np.mean(overlaps))},
    dict(size=size, images=len(names), C=CS[best], C_of_the_pictures=STRENGTH),
    [f"images of {size} pixels, not {HEIGHT}"] * (size != HEIGHT),
    pictures={"foreground.png": _stacked([np.concatenate(cell, 1) for cell in cells[:8]])})


def _stacked(pictures: list[np.ndarray]) -> np.ndarray:
  """Pictures below each other; narrower ones are filled up with white."""
  width = max(picture.shape[1] for picture in pictures)
  return np.concatenate([grid([[np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)),
                                       constant_values=255)]], columns=1)
                         for picture in pictures])
