"""Small data sets with true depth: views of a ball as in NAVI, and a real stereo pair.

The pair is Middlebury's motorcycle (Scharstein et al. 2014), which scikit-image's wheel has.
"""

import importlib.util
import json
import pathlib

import numpy as np
from PIL import Image

from dinov3_jax.evals import navi as protocol
from dinov3_jax.evals.mini_canvas import save

RADIUS, DISTANCE = 60.0, 300.0  # of the ball, millimetres
# Calibration of the pair at the size that scikit-image has it in, from its documentation.
FOCAL, CENTRE, OFFSET, BASELINE = 994.978, (311.193, 254.877), 31.086, 193.001
STRIPE = 64  # pixels of a stripe


def navi(out: pathlib.Path, drawings, rng: np.random.Generator, objects: int = 2, views: int = 6,
         height: int = 256, width: int = 320):
  """NAVI: balls that are painted with a drawing all around, seen from several sides."""
  for number in range(objects):
    folder = out / "navi_v1" / f"ball_{number}" / "wild_set"
    paint = texture(drawings[int(rng.choice(len(drawings)))], rng)
    annotations = []
    for i in range(views):
      axis = rng.normal(size=3)
      angle = np.radians(rng.uniform(0, 35))
      q = [np.cos(angle / 2), *(np.sin(angle / 2) * axis / np.linalg.norm(axis))]
      camera = dict(q=q, t=[*rng.uniform(-15, 15, 2), DISTANCE], focal_length=float(height))
      annotation = dict(filename=f"{i:03}.jpg", split="train", image_size=[height, width],
                        camera=camera)
      depth, points = ball(annotation, height, width)
      image = np.where((depth > 0)[..., None], paint(points), 235).astype(np.uint8)
      save(folder / "images" / f"{i:03}.jpg", image)
      stored = np.where(depth > 0, protocol.SCALE / np.maximum(depth, 1), 0)
      save(folder / "depth" / f"{i:03}.png", np.round(stored).astype(np.uint16))
      annotations.append(annotation)
    (folder / "annotations.json").write_text(json.dumps(annotations))


def ball(annotation: dict, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """A ball around the object's origin, as a camera of NAVI sees it.

  Returns:
    The depth of each pixel [height, width] in millimetres, 0 beside the ball, and the point of the
    ball [height, width, 3] in the object's frame.
  """
  pose, focal = protocol.camera_pose(annotation), annotation["camera"]["focal_length"]
  y, x = np.mgrid[:height, :width] + 0.5
  ray = np.stack([(x - width / 2) / focal, (y - height / 2) / focal, np.ones(x.shape)], -1)
  a, b = np.square(ray).sum(-1), ray @ pose[:3, 3]
  inside = b**2 - a * (pose[:3, 3] @ pose[:3, 3] - RADIUS**2)
  depth = np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, 0)
  return depth, (ray * depth[..., None] - pose[:3, 3]) @ pose[:3, :3]


def texture(drawing: Image.Image, rng: np.random.Generator):
  """Maps points of the ball [..., 3] to colours: a drawing, by longitude and latitude."""
  blotches = Image.fromarray(rng.integers(40, 255, (12, 24, 3), np.uint8)).resize(
    (512, 256), Image.Resampling.BICUBIC).convert("RGBA")
  own = drawing.resize((256, 256))
  for left in (0, 256):
    blotches.alpha_composite(own, (left, 0))
  table = np.asarray(blotches.convert("RGB"))

  def colours(points):
    # The poles lie on the x axis: cameras look at the equator, where the map is even.
    longitude = np.arctan2(points[..., 1], -points[..., 2]) / (2 * np.pi) + 0.5
    latitude = np.arccos(np.clip(points[..., 0] / RADIUS, -1, 1)) / np.pi
    return table[np.minimum(latitude * 256, 255).astype(int),
                 np.minimum(longitude * 512, 511).astype(int)]

  return colours


def motorcycle() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The left and the right image, uint8 [500, 741, 3], and the left one's disparity in pixels,
  float32 [500, 741], infinite where it is not known.

  Raises:
    ValueError: scikit-image is not installed.
  """
  found = importlib.util.find_spec("skimage")
  if found is None:
    raise ValueError("the stereo pair needs scikit-image: pip install scikit-image")
  folder = pathlib.Path(found.submodule_search_locations[0]) / "data"
  left, right = (np.asarray(Image.open(folder / f"motorcycle_{side}.png").convert("RGB"))
                 for side in ("left", "right"))
  with np.load(folder / "motorcycle_disp.npz") as file:
    return left, right, file["arr_0"].astype(np.float32)


def middlebury(out: pathlib.Path, drawings, rng: np.random.Generator):
  """Middlebury 2014: the motorcycle with its disparity and calibration. Drawings are not used."""
  left, right, disparity = motorcycle()
  folder = out / "Motorcycle"
  save(folder / "im0.png", left)
  save(folder / "im1.png", right)
  height, width = disparity.shape
  (folder / "disp0.pfm").write_bytes(f"Pf\n{width} {height}\n-1\n".encode()
                                     + disparity[::-1].astype("<f4").tobytes())
  x, y = CENTRE
  (folder / "calib.txt").write_text(
    f"cam0=[{FOCAL} 0 {x}; 0 {FOCAL} {y}; 0 0 1]\n"
    f"cam1=[{FOCAL} 0 {x + OFFSET}; 0 {FOCAL} {y}; 0 0 1]\n"
    f"doffs={OFFSET}\nbaseline={BASELINE}\nwidth={width}\nheight={height}\nndisp=70\n")


def nyu(out: pathlib.Path, drawings, rng: np.random.Generator):
  """NYUv2: stripes of the motorcycle in turn for training and for the test; depth is in metres.

  Stripes of one picture have much in common: what they show is a first look, no more.
  """
  left, _, disparity = motorcycle()
  metres = np.where(np.isfinite(disparity), FOCAL * BASELINE / 1000 / (disparity + OFFSET), 0)
  lines = {"train": [], "test": []}
  for i in range(left.shape[1] // STRIPE):
    split, part = ("train", "test")[i % 2], slice(i * STRIPE, (i + 1) * STRIPE)
    names = f"motorcycle/rgb_{i:05}.jpg", f"motorcycle/sync_depth_{i:05}.png"
    save(out / names[0], left[:, part])
    save(out / names[1], np.round(1000 * metres[:, part]).astype(np.uint16))
    lines[split].append(f"/{names[0]} /{names[1]} {FOCAL}\n")
  for split, own in lines.items():
    (out / f"nyu_{split}.txt").write_text("".join(own))
