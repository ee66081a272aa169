"""Monocular depth: the figures of a map, the regions that count, and the losses of its probe."""

import jax
import jax.numpy as jnp
import numpy as np

# What counts of an NYUv2 image, at 480 x 640: rows and columns (Eigen et al. 2014).
EIGEN = (45, 471, 41, 601)


def eigen_crop(height: int, width: int) -> np.ndarray:
  """The pixels that count on NYUv2, bool [height, width]; other sizes than 480 x 640 are scaled."""
  top, bottom, left, right = EIGEN
  mask = np.zeros((height, width), bool)
  mask[top * height // 480:bottom * height // 480, left * width // 640:right * width // 640] = True
  return mask


def garg_crop(height: int, width: int) -> np.ndarray:
  """The pixels that count on KITTI by convention (Garg et al. 2016), bool [height, width]."""
  mask = np.zeros((height, width), bool)
  mask[int(0.40810811 * height):int(0.99189189 * height),
       int(0.03594771 * width):int(0.96405229 * width)] = True
  return mask


def valid_pixels(truth: np.ndarray | jax.Array, least: float, most: float, region=None):
  """Where the truth lies strictly between both bounds, and in the region: bool like `truth`."""
  valid = (truth > least) & (truth < most)
  return valid if region is None else valid & region


def align(predicted, truth, valid) -> tuple[float, float]:
  """The scale and shift of the least squared error, in float64.

  The paper's table 3 does not align; relative depth is aligned so.

  Raises:
    ValueError: fewer than two valid pixels, or all of one predicted depth.
  """
  p, t = np.asarray(predicted, np.float64)[valid], np.asarray(truth, np.float64)[valid]
  if len(p) < 2 or np.ptp(p) == 0:
    raise ValueError("there are too few depths to align the prediction to the truth")
  (scale, shift), *_ = np.linalg.lstsq(np.stack([p, np.ones_like(p)], 1), t)
  return float(scale), float(shift)


def figures(predicted, truth, valid) -> dict[str, float]:
  """How far off a depth map is. Means over images of these are what is reported.

  Args:
    predicted: [H, W], above 0.
    truth: [H, W], in metres.
    valid: bool [H, W].

  Returns:
    `rmse` and `mae` in metres; `a1`, `a2`, `a3`: the share of pixels within a factor of 1.25 and
    its square and cube; `abs_rel`, `sq_rel`; `log_10`, `rmse_log`; `silog`, in percent.

  Raises:
    ValueError: no pixel is valid, or a prediction is not positive.
  """
  p, t = np.asarray(predicted, np.float64)[valid], np.asarray(truth, np.float64)[valid]
  if not len(t):
    raise ValueError("the image has no pixel of valid depth")
  if not (p > 0).all():
    raise ValueError("predicted depths must be positive: clamp them to the data set's range")
  ratio, log, error = np.maximum(p / t, t / p), np.log(p / t), p - t
  return dict(
    rmse=float(np.sqrt(np.square(error).mean())), mae=float(np.abs(error).mean()),
    **{f"a{n}": float((ratio < 1.25**n).mean()) for n in (1, 2, 3)},
    abs_rel=float((np.abs(error) / t).mean()), sq_rel=float((np.square(error) / t).mean()),
    log_10=float(np.abs(log).mean() / np.log(10)), rmse_log=float(np.sqrt(np.square(log).mean())),
    silog=float(100 * np.sqrt(max(np.square(log).mean() - np.square(log.mean()), 0))))


def from_bins(scores: jax.Array, least: float, most: float) -> jax.Array:
  """Depth from scores of bins: relu(x) + 0.1, normalised, weighs depths that are spread evenly.

  Args:
    scores: [..., K].
    least, most: depths of the first and the last bin.

  Returns:
    float32 [...].
  """
  weights = jax.nn.relu(scores.astype(jnp.float32)) + 0.1
  bins = jnp.linspace(least, most, scores.shape[-1])
  return (weights * bins).sum(-1) / weights.sum(-1)


def sig_loss(predicted: jax.Array, truth: jax.Array, valid: jax.Array,
             variance: jax.Array | bool = True) -> jax.Array:
  """The scale-invariant loss sqrt(Var(g) + 0.15 Mean(g)^2), g = log(p + 1e-3) - log(t + 1e-3).

  The variance is unbiased. The reference leaves it out in the first 100 steps.

  Args:
    predicted, truth: float [...].
    valid: bool [...].
    variance: whether it is part of the loss.

  Returns:
    A float32 scalar, whose gradient is 0, not NaN, where the loss is 0.
  """
  g = jnp.where(valid, jnp.log(predicted + 1e-3) - jnp.log(jnp.where(valid, truth, 1) + 1e-3), 0)
  count = valid.sum()
  mean = g.sum() / jnp.maximum(count, 1)
  spread = (jnp.square(g - mean) * valid).sum() / jnp.maximum(count - 1, 1)
  square = jnp.where(variance, spread, 0) + 0.15 * jnp.square(mean)
  positive = square > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
