"""A small data set in KITTI's layout: roads between houses, with depth by rays.

A quarter of KITTI's resolution, and its camera: the focal length and the height above the road.
"""

import pathlib

import numpy as np

from dinov3_jax.evals.mini_canvas import save

HEIGHT, WIDTH = 94, 310
FOCAL, ABOVE = 721.5377 / 4, 1.65  # pixels, metres
UNIT = 256  # steps of a depth file a metre
FARTHEST = 90.0  # metres, of the sky
SEEN = 0.3  # share of pixels with depth, below the highest beam of the scanner


def kitti(out: pathlib.Path, drawings, rng: np.random.Generator, train: int = 12, test: int = 6):
  """KITTI with Eigen's lists as BTS has them; the last image of each list has no depth."""
  for split, count in (("train", train), ("test", test)):
    lines = []
    for i in range(count + 1):
      drive = f"2011_09_26_drive_{i:04}_sync"
      image_name = f"2011_09_26/{drive}/image_02/data/{split}{i:06}.png"
      depth_name = f"{drive}/proj_depth/groundtruth/image_02/{split}{i:06}.png"
      image, depth = road(drawings, rng)
      save(out / "raw" / image_name, image)
      if i < count:
        scanned = (rng.random(depth.shape) < SEEN) & (depth < FARTHEST)
        scanned[:HEIGHT // 3] = False
        part = "val" if i % 4 == 3 else "train"  # of the annotated depth, not of Eigen's lists
        save(out / "data_depth_annotated" / part / depth_name,
             np.round(np.where(scanned, UNIT * depth, 0)).astype(np.uint16))
      lines.append(f"{image_name} {depth_name if i < count else None} {4 * FOCAL:.4f}\n")
    (out / f"eigen_{split}_files_with_gt.txt").write_text("".join(lines))


def road(drawings, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """A view along a road with houses on both sides, and three drawings that stand on it.

  Returns:
    uint8 [HEIGHT, WIDTH, 3], and the depth in metres, float32 [HEIGHT, WIDTH].
  """
  v, u = np.mgrid[:HEIGHT, :WIDTH] + 0.5
  across, down = (u - WIDTH / 2) / FOCAL, (v - HEIGHT / 2) / FOCAL  # of a ray, a metre ahead
  beside = rng.uniform(4, 9, 2)  # metres to the houses on the left and on the right
  roof = rng.uniform(4, 8)
  near = 1e-6
  ground = np.where(down > near, ABOVE / np.maximum(down, near), np.inf)
  wall = np.where(across < 0, beside[0], beside[1]) / np.maximum(abs(across), near)
  wall = np.where(-down * wall + ABOVE < roof, wall, np.inf)
  depth = np.minimum(np.minimum(ground, wall), FARTHEST)
  paint = rng.uniform(60, 200, (4, 3))  # of the road, both rows of houses, and the sky
  which = np.select([depth == FARTHEST, ground <= wall, across < 0], [3, 0, 1], 2)
  stripes = np.where(which == 0, (depth // 3 % 2) * (abs(across * depth) < 0.4) * 60,
                     ((depth // 2 + (down * depth) // 1.2) % 2) * 30 * (which < 3))
  image = paint[which] + stripes[..., None]
  for distance in np.sort(rng.uniform(6, 40, 3))[::-1]:
    side = max(round(2.5 * FOCAL / distance), 2)  # of a drawing 2.5 m tall
    drawing = np.asarray(drawings[int(rng.choice(len(drawings)))].resize((side, side)))
    left = round(WIDTH / 2 + rng.uniform(-3, 3) * FOCAL / distance - side / 2)
    top = round(HEIGHT / 2 + ABOVE * FOCAL / distance) - len(drawing)
    inside = [slice(max(start, 0), max(min(start + len(drawing), end), 0))
              for start, end in ((top, HEIGHT), (left, WIDTH))]
    own = drawing[tuple(slice(part.start - start, part.stop - start)
                        for part, start in zip(inside, (top, left)))]
    opaque = own[..., 3] > 127
    image[tuple(inside)][opaque] = own[opaque][:, :3]
    depth[tuple(inside)][opaque] = distance
  haze = np.exp(-depth / 50)[..., None]
  image = image * haze + paint[3] * (1 - haze) + rng.normal(0, 3, image.shape)
  return np.clip(image, 0, 255).astype(np.uint8), depth.astype(np.float32)
