"""Geometric correspondence between views of an object on NAVI: recall of matched points."""

import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image

from dinov3_jax.data.decode import decode
from dinov3_jax.evals import matching, navi
from dinov3_jax.evals.drawing import matched
from dinov3_jax.evals.pca import grid
from dinov3_jax.evals.session import LayoutError, Result, Session, mark

SIZE, POINTS = 512, 128  # sides of a view, pixels, and of its grid of points
ANGLES = (0, 120)  # degrees between two views of a pair, the first excluded
SHOWN = 6  # pairs in the picture
NORMS = {"with the norm": True, "without the norm": False}  # the final one, before matching
EVERY = 4  # of the images with a partner, which ones are the first of a pair
LAYOUT = "navi_v1/OBJECT/wild_set with images/, depth/ and annotations.json"
PAPER = {name: {"recall, cosine": value} for name, value in dict(  # table 4
  vits16=56.3, vits16plus=57.1, vitb16=58.8, vitl16=62.3, vith16plus=63.3, vit7b16=64.4).items()}


@dataclasses.dataclass(frozen=True)
class View:
  """An image of an object.

  Attributes:
    folder: of its set.
    name: of the image.
    annotation: of its camera.
  """

  folder: pathlib.Path
  name: str
  annotation: dict

  @property
  def files(self) -> tuple[pathlib.Path, pathlib.Path]:
    """The image and its depth."""
    return self.folder / "images" / self.name, self.folder / "depth" / (
      pathlib.Path(self.name).stem + ".png")


def run(session: Session) -> Result:
  """Pairs of `wild_set`, drawn by a seed; recall within 1, 2 and 5 cm and its mean.

  Matches are chosen by cosine, as the paper says, and by Lowe's ratio, as Probe3D's code does. The
  features are those of the last layer with and without its norm; the better ones count.
  """
  size = session.side(SIZE)
  listed = pairs(session)
  chosen = session.some(listed)
  ledger = session.ledger("navi", (size, *NORMS))
  found, cells = {}, []
  for first, second in session.each(chosen, "pairs"):
    def compute(first=first, second=second):
      errors, picture = compare(session, first, second, size)
      if len(cells) < SHOWN:
        cells.append([picture])
      return errors

    marks = [mark(path) for view in (first, second) for path in view.files]
    key = repr((str(first.folder), first.name, second.name, marks))
    # The first ones are compared again by every run, for their pictures.
    errors = ledger.get(key, compute) if len(cells) == SHOWN else compute()
    for kind, own in errors.items():
      found.setdefault(kind, []).append(
        [matching.recall(own, limit) for limit in navi.THRESHOLDS])
  recalls = {kind: 100 * np.mean(own, 0) for kind, own in found.items()}
  figures, better = {}, {}
  for by in ("cosine", "ratio"):
    better[by] = max(NORMS, key=lambda norm: recalls[f"{by}, {norm}"].mean())
    best = recalls[f"{by}, {better[by]}"]
    figures |= {f"recall, {by}": float(best.mean())} | {
      f"recall at {round(100 * limit)} cm, {by}": float(own)
      for limit, own in zip(navi.THRESHOLDS, best)} | {
      f"recall, {by}, {norm}": float(recalls[f"{by}, {norm}"].mean()) for norm in NORMS}
  return Result(figures, dict(
      size=size, pairs=len(chosen), matches=navi.MATCHES, angles=list(ANGLES), better=better),
    ["pairs are drawn by a seed of their own: those of Probe3D follow the order of files on a disk"]
    + [f"images of {size} pixels, not {SIZE}"] * (size != SIZE)
    + [f"{len(chosen)} of {len(listed)} pairs"] * (len(chosen) < len(listed)), PAPER,
    {"matches.png": grid(cells, columns=1)})


def pairs(session: Session) -> list[tuple[View, View]]:
  """Every fourth image that has a partner within the angles, with one of its partners.

  Raises:
    LayoutError: no object, or annotations of another form.
  """
  root = session.path("navi_v1", LAYOUT) if (session.data / "navi_v1").is_dir() else session.data
  rng, found = np.random.default_rng(0), []
  files = sorted(root.glob("*/wild_set/annotations.json"))
  if not files:
    raise LayoutError(f"{root} has no OBJECT/wild_set/annotations.json: wanted is {LAYOUT}")
  for file in files:
    try:
      views = [View(file.parent, own["filename"], own) for own in json.loads(file.read_text())]
      poses = [navi.camera_pose(view.annotation) for view in views]
    except (ValueError, KeyError, TypeError) as error:
      raise LayoutError(f"{file} has no annotations of NAVI: {error}") from error
    for i, view in enumerate(views):
      partners = [j for j, pose in enumerate(poses) if j != i
                  and ANGLES[0] < navi.relative_angle(poses[i], pose) <= ANGLES[1]]
      if partners:
        found.append((view, views[int(rng.choice(partners))]))
  if not found:
    raise LayoutError(f"{root} has no two views of an object that are at most {ANGLES[1]} degrees "
                      "apart")
  return found[::EVERY]


def load(view: View, size: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
  """A view around its object.

  Returns:
    uint8 [size, size, 3]; the points of its pixels in metres, in the camera's frame, float64
    [POINTS, POINTS, 3], z = 0 where there is none; and the square (top, left, side) that is shown
    of the middle of the image, at SIZE.

  Raises:
    LayoutError: depth of another size than the image, of 8 bits, or without the object.
  """
  image_path, depth_path = view.files
  image = decode(image_path, image_path)
  with Image.open(depth_path) as file:
    if not file.mode.startswith("I"):
      raise LayoutError(f"{depth_path} has the mode {file.mode}: NAVI's depth is a PNG of 16 bits")
    depth = navi.depth_millimetres(np.asarray(file)) / 1000
  if depth.shape != image.shape[:2]:
    raise LayoutError(f"{depth_path} is of {depth.shape} pixels, its image of {image.shape[:2]}")
  short = min(depth.shape)
  image, depth = (middle(x) for x in (image, depth))
  focal = view.annotation["camera"]["focal_length"] * SIZE / short
  centre = np.arange(SIZE) + 0.5 - SIZE / 2
  xyz = np.stack([depth * centre / focal, depth * centre[:, None] / focal, depth], -1)
  try:
    top, left, side = navi.object_crop(depth > 0)
  except ValueError as error:
    raise LayoutError(f"{depth_path}: {error}") from error
  image, xyz = (x[top:top + side, left:left + side] for x in (image, xyz))
  return sample(image, size), sample(xyz, POINTS), (top, left, side)


def middle(x: np.ndarray) -> np.ndarray:
  """The middle square, with SIZE pixels a side, each the nearest one."""
  scale = SIZE / min(x.shape[:2])
  height, width = (max(round(side * scale), SIZE) for side in x.shape[:2])
  rows, columns = (np.arange(SIZE) + (side - SIZE) // 2 for side in (height, width))
  return x[rows[:, None] * x.shape[0] // height, columns * x.shape[1] // width]


def sample(x: np.ndarray, size: int) -> np.ndarray:
  """[size, size, ...] of a square: of each pixel, the nearest one before it."""
  places = np.arange(size) * len(x) // size
  return x[places[:, None], places]


def compare(session: Session, first: View, second: View, size: int
            ) -> tuple[dict[str, list[float]], np.ndarray]:
  """The errors of the matches of two views in metres, by how they are chosen and by the norm, such
  as "cosine, with the norm", and a picture of the first kind."""
  loaded = [load(view, size) for view in (first, second)]
  transform = navi.camera_pose(second.annotation) @ np.linalg.inv(
    navi.camera_pose(first.annotation))
  transform[:3, 3] /= 1000
  errors, matches = {}, {}
  for name, norm in NORMS.items():
    patches = [session.patches(image, norm=norm) for image, _, _ in loaded]
    for by in ("cosine", "ratio"):
      source, target, _ = navi.correspond(*patches, *(xyz for _, xyz, _ in loaded), by=by)
      errors[f"{by}, {name}"] = navi.errors(source, target, transform)[0]
      matches[f"{by}, {name}"] = source, target
  kind = next(iter(errors))
  shown = np.linspace(0, len(errors[kind]) - 1, 24).astype(int)
  places = [pixels(points[shown], view, square, size)
            for points, view, (_, _, square) in zip(matches[kind], (first, second), loaded)]
  picture = matched(loaded[0][0], loaded[1][0], *places,
                    errors[kind][shown] < navi.THRESHOLDS[-1])
  return {kind: own.tolist() for kind, own in errors.items()}, picture


def pixels(points: np.ndarray, view: View, square: tuple[int, int, int], size: int) -> np.ndarray:
  """Where points [n, 3] of a view are in its picture: (x, y) each, [n, 2]."""
  focal = view.annotation["camera"]["focal_length"] * SIZE / min(view.annotation["image_size"])
  top, left, side = square
  return (points[:, :2] / points[:, 2:] * focal + SIZE / 2 - [left, top]) * size / side
