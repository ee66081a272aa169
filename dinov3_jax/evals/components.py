"""Principal components that are shared by images, and the foreground that they are fitted on."""

import dataclasses

import numpy as np
from scipy import ndimage


@dataclasses.dataclass(frozen=True)
class Components:
  """Attributes:
    mean: float64 [D].
    axes: float64 [K, D], unit vectors, the largest variance first.
    variance: float64 [K], of the sample: divided by N - 1, as scikit-learn has it.
  """

  mean: np.ndarray
  axes: np.ndarray
  variance: np.ndarray

  def project(self, features) -> np.ndarray:
    """Whitened projections float64 [..., K] of features [..., D]."""
    centred = np.asarray(features, np.float64) - self.mean
    return centred @ self.axes.T / np.sqrt(np.maximum(self.variance, 1e-30))

  def rgb(self, features, mask=None) -> np.ndarray:
    """Colours sigmoid(2 x) of the first three components, black outside the mask.

    Args:
      features: [..., D].
      mask: bool [...].

    Returns:
      float32 [..., 3] in [0, 1].
    """
    colours = 1 / (1 + np.exp(-2 * self.project(features)[..., :3]))
    return np.where(True if mask is None else mask[..., None], colours, 0).astype(np.float32)


class Moments:
  """Mean and covariance of features that come in parts, so that none of them must be kept.

  Attributes:
    count: of the features.
    mean: float64 [D].
    scatter: float64 [D, D], the covariance times the count.
  """

  def __init__(self, dims: int):
    self.count, self.mean, self.scatter = 0, np.zeros(dims), np.zeros((dims, dims))

  def add(self, features):
    """Takes features [n, D] in.

    Raises:
      ValueError: they have another shape, or are not finite.
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or not len(x) or not np.isfinite(x).all():
      raise ValueError(f"principal components need features [N, D] that are all finite, not "
                       f"{x.shape}")
    own = Moments(x.shape[1])
    own.count, own.mean = len(x), x.mean(0)
    x = x - own.mean
    own.scatter = x.T @ x
    self.join(own)

  def join(self, other: "Moments"):
    """Takes in those of other features."""
    shift, total = other.mean - self.mean, self.count + other.count
    self.scatter += other.scatter + np.outer(shift, shift) * (self.count * other.count / total)
    self.mean = self.mean + shift * (other.count / total)
    self.count = total

  @property
  def variance(self) -> float:
    """That of all dimensions together, divided by N - 1."""
    return float(np.trace(self.scatter) / max(self.count - 1, 1))

  def components(self, count: int = 3, skip: int = 0) -> Components:
    """The principal components. Signs are fixed: the largest entry of every axis is positive.

    Args:
      count: how many.
      skip: so many of the largest ones are left out; the paper's figure 17 shows those after 4.

    Raises:
      ValueError: too few features or dimensions.
    """
    if count + skip > min(self.count - 1, len(self.mean)):
      raise ValueError(f"{count + skip} components need more features than that, and as many "
                       f"dimensions, not {(self.count, len(self.mean))}")
    variance, axes = np.linalg.eigh(self.scatter / (self.count - 1))
    kept = slice(skip, skip + count)
    variance, axes = np.maximum(variance[::-1][kept], 0), axes.T[::-1][kept]
    axes = axes * np.sign(axes[np.arange(count), np.abs(axes).argmax(1)])[:, None]
    return Components(self.mean, axes, variance)


def fit(features, count: int = 3, skip: int = 0) -> Components:
  """`Moments.components` of features [N, D] that are all there.

  Raises:
    ValueError: too few features or dimensions, or features that are not finite.
  """
  x = np.asarray(features, np.float64)
  moments = Moments(x.shape[-1])
  moments.add(x)
  return moments.components(count, skip)


def patch_shares(alpha, patch: int = 16) -> np.ndarray:
  """The share of each patch that is covered: the mean of alpha [H, W] over whole patches."""
  rows, columns = (side // patch for side in np.shape(alpha))
  whole = np.asarray(alpha)[:rows * patch, :columns * patch]
  return whole.reshape(rows, patch, columns, patch).mean((1, 3))


def smooth(score) -> np.ndarray:
  """The median of the 3 x 3 patches around each, zeros beyond the edge: [h, w]."""
  return ndimage.median_filter(np.asarray(score), 3, mode="constant", cval=0)


def foreground(score) -> np.ndarray:
  """Where the smoothed probability of the foreground is above one half: bool [h, w]."""
  return smooth(score) > 0.5


def picture_size(height: int, width: int, target: int = 768, patch: int = 16) -> tuple[int, int]:
  """The size that the reference's notebooks look at: the height given, the width whole patches, at
  least one."""
  return target, max(int(target * width / height) // patch, 1) * patch
