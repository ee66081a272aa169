"""Small data sets whose images show the truth itself, so that features can be made of it.

With them a task must reach what its grid of patches allows: whatever is less is its own fault.
"""

import json
import pathlib
import shutil
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image
from scipy import ndimage

from dinov3_jax.evals import mini_imagenet, navi, objectnet, segmentation
from dinov3_jax.evals.framing import read_alpha, read_labels
from dinov3_jax.evals.mini_stand_ins import STEP, Known, classes, levels, places
from dinov3_jax.evals.tasks import discovery, instances, stereo

# Maps the path of a file in the data set to what its image shows instead, uint8 [H, W, 3]; None
# for files that stay as they are.
Truth = Callable[[pathlib.Path], np.ndarray | None]
FEW, MANY = partial(classes, count=32), partial(classes, count=1000)
VOID = 31  # the class of pixels that do not count
FARTHEST = {"NYUv2": 10.0, "KITTI": 80.0}  # metres, white


def write(root: pathlib.Path, name: str, out: pathlib.Path, patch: int):
  """Writes the set `name` of `TRUTHS` that lies in `root` into the folder `out`.

  Args:
    patch: side of the patches that it is for.
  """
  truth = TRUTHS[name][0](root / name, patch)
  whole = out.with_name(f"{out.name}.new")
  shutil.rmtree(whole, ignore_errors=True)
  for path in sorted(root.joinpath(name).rglob("*")):
    if path.is_file():
      target = whole / path.relative_to(root / name)
      target.parent.mkdir(parents=True, exist_ok=True)
      image = truth(path)
      if image is None:
        shutil.copy(path, target)
      else:
        exact = dict(quality=100, subsampling=0) if path.suffix != ".png" else {}
        Image.fromarray(image).save(target, **exact)
  whole.rename(out)


def colours(codes) -> np.ndarray:
  """The colour of each class [...] below 1000: a digit of the number a channel, uint8 [..., 3]."""
  codes = np.asarray(codes)[..., None]
  return (codes // [100, 10, 1] % 10 * STEP).astype(np.uint8)


def _solid(code: int) -> np.ndarray:
  return np.broadcast_to(colours(code), (16, 16, 3))


def _folders(root: pathlib.Path, patch: int) -> Truth:
  names = sorted(path.name for path in (root / "train").iterdir())
  return lambda path: _solid(names.index(path.parent.name))


def _imagenet(root: pathlib.Path, patch: int) -> Truth:
  names = sorted(path.name for path in (root / "train").iterdir())

  def truth(path):
    kind, own = path.relative_to(root).parts[0], path.parent.name
    if path.suffix == ".json":
      return None
    if kind == mini_imagenet.V2:
      return _solid(int(own))
    if kind == "objectnet-1.0":
      bordered = np.full((18, 18, 3), [255, 0, 0], np.uint8)
      bordered[1:-1, 1:-1] = _solid(objectnet.FOLDERS.get(own, [0])[-1])
      return bordered
    return _solid(names.index(own))

  return truth


def _masks(image_folder: str, mask_folder: str, suffix: str = ".png") -> Callable[..., Truth]:
  """Images of the labels that lie in another folder."""
  def of(root: pathlib.Path, patch: int) -> Truth:
    def truth(path):
      if image_folder not in path.parts:
        return None
      return colours(read_labels(str(path.with_suffix(suffix)).replace(image_folder, mask_folder)))

    return truth
  return of


def _voc(root: pathlib.Path, patch: int) -> Truth:
  """Masks for segmentation, with the void a class of its own; filled boxes for discovery."""
  def truth(path):
    if path.parent.name != "JPEGImages":
      return None
    mask = path.parents[1] / "SegmentationClass" / f"{path.stem}.png"
    if mask.exists():
      labels = read_labels(mask)
      return colours(np.where(labels == segmentation.IGNORE, VOID, labels))
    with Image.open(path) as image:
      inside = np.zeros(image.size[::-1], int)
    for left, top, right, bottom in discovery.read_boxes(
        path.parents[1] / "Annotations" / f"{path.stem}.xml"):
      inside[top:bottom, left:right] = 1
    return colours(inside)

  return truth


def _oxford(root: pathlib.Path, patch: int) -> Truth:
  found = instances.read_truth(root / "gnd_roxford5k.pkl")
  codes = {name: len(found["qimlist"]) + i for i, name in enumerate(found["imlist"])}
  for query, (name, own) in enumerate(zip(found["qimlist"], found["gnd"])):
    same = [found["imlist"][i] for kind in ("easy", "hard", "junk") for i in own[kind]]
    codes |= dict.fromkeys([name, *same], query)
  return lambda path: None if path.suffix == ".pkl" else _solid(codes[path.stem])


def _met(root: pathlib.Path, patch: int) -> Truth:
  codes, strange = {}, 0
  for file in sorted((root / "ground_truth").glob("*.json")):
    for entry in json.loads(file.read_text()):
      work = entry.get("MET_id", entry.get("id"))
      strange += work is None
      codes[entry["path"]] = 999 - strange if work is None else work
  return lambda path: None if path.suffix == ".json" else _solid(
      codes[path.relative_to(root / "images").as_posix()])


def _spair(root: pathlib.Path, patch: int) -> Truth:
  """Where each pixel is in the first view of its class, by the affine map of the keypoints."""
  points = {}
  for file in sorted((root / "PairAnnotation/test").glob("*.json")):
    pair = json.loads(file.read_text())
    points |= {(pair["category"], pair[f"{key}_imname"]): np.array(pair[f"{key}_kps"], float)
               for key in ("src", "trg")}

  def truth(path):
    if path.suffix != ".jpg":
      return None
    category = path.parent.name
    first = points[min(key for key in points if key[0] == category)]
    own = points[category, path.name]
    affine, *_ = np.linalg.lstsq(np.c_[own, np.ones(len(own))], first, rcond=None)
    with Image.open(path) as image:
      width, height = image.size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    there = np.stack([x, y, np.ones_like(x)], -1) @ affine
    return np.clip(np.pad(there, ((0, 0), (0, 0), (0, 1))), 0, 255).astype(np.uint8)

  return truth


def _navi(root: pathlib.Path, patch: int) -> Truth:
  """The place of each point in the frame of its object, 200 mm a side."""
  def truth(path):
    if path.parent.name != "images":
      return None
    views = json.loads((path.parents[1] / "annotations.json").read_text())
    own = next(view for view in views if view["filename"] == path.name)
    with Image.open(path.parents[1] / "depth" / f"{path.stem}.png") as file:
      depth = navi.depth_millimetres(np.asarray(file))
    height, width = depth.shape
    focal, pose = own["camera"]["focal_length"], navi.camera_pose(own)
    y, x = np.mgrid[:height, :width] + 0.5
    seen = np.stack([(x - width / 2) / focal, (y - height / 2) / focal, np.ones(x.shape)], -1)
    points = (seen * depth[..., None] - pose[:3, 3]) @ pose[:3, :3]
    return np.clip(127.5 + 1.275 * points, 0, 255).astype(np.uint8)

  return truth


def _middlebury(root: pathlib.Path, patch: int) -> Truth:
  """The place in the right image: of each patch of the left one by its disparity, and its own."""
  def truth(path):
    if path.suffix != ".png":
      return None
    with Image.open(path) as image:
      width, height = image.size
    y, x = np.mgrid[:height, :width].astype(float)
    if path.name == "im0.png":
      disparity = stereo.read_pfm(path.with_name("disp0.pfm"))
      middle = np.minimum(np.arange(max(height, width)) // patch * patch + patch // 2,
                          max(height, width) - 1)
      rows, columns = np.minimum(middle[:height], height - 1), np.minimum(middle[:width], width - 1)
      own = disparity[rows[:, None], columns]
      x -= np.where(np.isfinite(own), own, 0)
    return np.clip(np.round(np.stack([255 * x / width, 255 * y / height, 0 * x], -1)), 0, 255
                   ).astype(np.uint8)

  return truth


def _depth(name: str, suffix: str, unit: float) -> Callable[..., Truth]:
  """Grey that grows with the depth; where there is none, that of the nearest pixel with depth."""
  def of(root: pathlib.Path, patch: int) -> Truth:
    maps = {path.relative_to(root).as_posix(): path for path in root.rglob("*.png")}

    def truth(path):
      if path.suffix != suffix or "groundtruth" in path.parts:
        return None
      if name == "KITTI":
        drive, frame = path.parts[-4], path.name
        found = next((maps[key] for key in maps if drive in key and "groundtruth" in key
                      and key.endswith(f"/{frame}")), None)
      else:
        found = path.with_name(path.name.replace("rgb_", "sync_depth_")).with_suffix(".png")
      if found is None:  # an image without depth, which no task looks at
        return None
      with Image.open(found) as file:
        metres = np.asarray(file, float) / unit
      nearest = ndimage.distance_transform_edt(metres == 0, return_distances=False,
                                               return_indices=True)
      grey = np.clip(255 * metres[tuple(nearest)] / FARTHEST[name], 0, 255)
      return np.repeat(np.round(grey).astype(np.uint8)[..., None], 3, 2)

    return truth
  return of


def _foreground(root: pathlib.Path, patch: int) -> Truth:
  return lambda path: colours(1 * (read_alpha(root / "labels" / f"{path.stem}.png") > 0)) if (
      path.parent.name == "images") else None


TRUTHS: dict[str, tuple[Callable[[pathlib.Path, int], Truth], Known]] = {  # by folder
  "DAVIS": (_masks("JPEGImages", "Annotations"), FEW),
  "MOSE": (_masks("JPEGImages", "Annotations"), FEW),
  "Middlebury": (_middlebury, places),
  "NYUv2": (_depth("NYUv2", ".jpg", 1000), levels),
  "KITTI": (_depth("KITTI", ".png", 256), levels),
  "folders": (_folders, FEW),
  "ImageNet": (_imagenet, MANY),
  "VOC": (_voc, FEW),
  "oxford": (_oxford, MANY),
  "AmsterTime": (lambda root, patch: lambda path: _solid(int(path.stem)), MANY),
  "Met": (_met, MANY),
  "SPair-71k": (_spair, places),
  "NAVI": (_navi, places),
  "foreground": (_foreground, FEW),
}
