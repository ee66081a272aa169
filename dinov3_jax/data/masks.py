"""iBOT's patch masks: random blocks, of an exact and constant total.

The reference masks the same number of patches on every step of every device: the crops to mask and
their ratios are evenly spread, only which crop gets which ratio is drawn. So the number of masked
tokens is static, and a compiled step needs no padding.
"""

import math

import numpy as np

MIN_BLOCK = 4  # patches
MIN_ASPECT = 0.3
MAX_SHARE = 0.5  # of the grid, in one block
TRIES = 10


def mask_counts(crops: int, patches: int, probability: float = 0.5,
                ratio: tuple[float, float] = (0.1, 0.5)) -> np.ndarray:
  """Masked patches of each masked crop in a shard, in ascending order.

  Args:
    crops: global crops in the shard (twice its images).
    patches: patches a crop.
    probability: share of the crops that get a mask.
    ratio: least (exclusive) and greatest share of a crop's patches that are masked.

  Returns:
    int [floor(crops * probability)].

  Raises:
    ValueError: a probability or ratio outside [0, 1], or a descending ratio.
  """
  low, high = ratio
  if not (0 <= probability <= 1 and 0 <= low <= high <= 1):
    raise ValueError(f"mask probability {probability} and ratio {tuple(ratio)} must lie in [0, 1], "
                     "the ratio ascending")
  masked = int(crops * probability)
  # Float32 and truncation, as the reference: in float64 some counts would be off by one.
  shares = np.linspace(low, high, masked + 1, dtype=np.float32)[1:]
  return (np.float32(patches) * shares).astype(np.int64)


def masked_count(crops: int, patches: int, probability: float = 0.5,
                 ratio: tuple[float, float] = (0.1, 0.5)) -> int:
  """Masked patches of a whole shard: the M of the batch, the same on every step."""
  return int(mask_counts(crops, patches, probability, ratio).sum())


def block_mask(grid: int, count: int, rng: np.random.Generator) -> np.ndarray:
  """Masks exactly `count` patches: rectangles while they fit, then single patches at random.

  Blocks have an area of U(4, what is missing, at most half of the grid) and a log-uniform aspect
  in [0.3, 1/0.3]; one is taken if it adds something and not too much (BEiT; reference).

  Args:
    grid: patches along a side.
    count: patches to mask, at most grid**2.
    rng: the randomness.

  Returns:
    bool [grid, grid].
  """
  mask = np.zeros((grid, grid), bool)
  missing = count
  while missing > 0:
    added = _add_block(mask, min(missing, MAX_SHARE * grid * grid), rng)
    if not added:
      break
    missing -= added
  if missing:
    free = np.flatnonzero(~mask)
    mask.flat[rng.choice(free, missing, replace=False)] = True
  return mask


def _add_block(mask: np.ndarray, most: float, rng: np.random.Generator) -> int:
  """Masks one more block in place; returns how many patches that added, 0 if none was found."""
  grid = mask.shape[0]
  spread = math.log(MIN_ASPECT)
  for _ in range(TRIES):
    area, aspect, down, right = rng.random(4).tolist()
    area = MIN_BLOCK + area * (most - MIN_BLOCK)
    aspect = math.exp(spread - 2 * spread * aspect)
    h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if h >= grid or w >= grid:
      continue
    top, left = int(down * (grid - h + 1)), int(right * (grid - w + 1))
    block = mask[top : top + h, left : left + w]
    added = block.size - int(np.count_nonzero(block))
    if 0 < added <= most:
      block[:] = True
      return added
  return 0


def shard_masks(rng: np.random.Generator, images: int, grid: int, probability: float = 0.5,
                ratio: tuple[float, float] = (0.1, 0.5), circular_shift: bool = False
                ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Masks for the two global crops of every image of one data shard.

  Args:
    rng: the randomness.
    images: images in the shard.
    grid: patches along a side of a global crop; N = grid**2.
    probability, ratio: see `mask_counts`.
    circular_shift: rolls each mask by a random offset, so that no patch is favoured.

  Returns:
    masks bool [images, 2, N]; mask_indices int32 [M], ascending positions in the flattened masks;
    mask_weights float32 [M], 1 / (masked patches of the crop the position is in).
  """
  crops = 2 * images
  masks = np.zeros((crops, grid, grid), bool)
  counts = mask_counts(crops, grid * grid, probability, ratio)
  for crop, count in zip(rng.permutation(crops), counts):
    mask = block_mask(grid, int(count), rng)
    if circular_shift:
      mask = np.roll(mask, tuple(rng.integers(grid, size=2)), (0, 1))
    masks[crop] = mask
  masks = masks.reshape(crops, -1)
  indices = np.flatnonzero(masks).astype(np.int32)
  masked = masks.sum(1)
  weights = np.repeat(1 / masked.clip(1), masked).astype(np.float32)
  return masks.reshape(images, 2, -1), indices, weights
