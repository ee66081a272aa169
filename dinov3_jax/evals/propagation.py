"""Label propagation: soft masks follow a video by the similarity of patches."""

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

# Entries of the patch-by-context matrix that are made at once: on CPUs, what their caches hold.
SIMILARITIES = {"cpu": 2**21}
OTHERWISE = 2**26
PASSES = 16  # over some of these entries, at most, to find the k-th largest
GROUP = 64  # entries of which only the largest is looked at first


@dataclasses.dataclass(frozen=True)
class Propagation:
  """The settings of a propagation; the defaults are those of the reference's notebook.

  Attributes:
    context: how many of the last frames are looked at, beside the first one.
    radius: how far from the same place a patch may come from, in patches; None: anywhere.
    shape: of that neighbourhood, "circle" or "square".
    neighbours: how many of the most similar patches count. Equal ones at the last place all do.
    temperature: of the softmax over their cosines.
  """

  context: int = 7
  radius: int | None = 12
  shape: Literal["circle", "square"] = "circle"
  neighbours: int = 5
  temperature: float = 0.2

  def __post_init__(self):
    if self.shape not in ("circle", "square"):
      raise ValueError(f'the neighbourhood must be "circle" or "square", not {self.shape!r}')
    if self.context < 0 or self.neighbours < 1 or not self.temperature > 0:
      raise ValueError("a propagation needs a context of at least 0, a neighbour and a positive "
                       f"temperature, not {self}")


def neighbourhood(rows: int, columns: int, radius: int | None, shape: str) -> np.ndarray:
  """Which patches (columns) may give their label to which (rows): bool [N, N], N = rows columns."""
  y, x = np.divmod(np.arange(rows * columns), columns)
  dy, dx = abs(y[:, None] - y), abs(x[:, None] - x)
  if radius is None:
    return np.ones(dy.shape, bool)
  return dy**2 + dx**2 <= radius**2 if shape == "circle" else np.maximum(dy, dx) <= radius


def propagate(features: Iterable[np.ndarray], first, settings: Propagation = Propagation()
              ) -> Iterator[np.ndarray]:
  """The soft labels of each frame.

  Every patch takes the mean of the soft labels of its most similar patches in the context, weighted
  by the softmax of their cosines; the result joins the context.

  Args:
    features: patches [h, w, D] of each frame, the first one included; they are normalised here.
    first: labels of the first frame's patches, [h, w, K]: one-hot, or shares.
    settings: of the propagation.

  Yields:
    float32 [h, w, K] for each frame, that of the first one as given.

  Raises:
    ValueError: features or labels that do not fit each other.
  """
  first = np.asarray(first, np.float32)
  rows, columns, labels = first.shape
  near = bank = masks = None
  count = rows * columns
  for i, frame in enumerate(features):
    if frame.shape[:2] != (rows, columns):
      raise ValueError(f"frame {i} has {frame.shape[0]} x {frame.shape[1]} patches, the first mask "
                       f"{rows} x {columns}")
    x = _normalize(jnp.asarray(frame).reshape(count, -1))
    if i == 0:
      near = jnp.asarray(neighbourhood(rows, columns, settings.radius, settings.shape))
      # Places of the context: the first frame, then the last ones in turn. Those that are not
      # filled yet are not looked at, so that one program serves all frames.
      bank = jnp.zeros((1 + settings.context, *x.shape)).at[0].set(x)
      masks = jnp.zeros((1 + settings.context, count, labels)).at[0].set(first.reshape(count, -1))
      yield first
      continue
    y = _next(x, bank, masks, near, min(i, 1 + settings.context),
              neighbours=settings.neighbours, temperature=settings.temperature)
    if settings.context:
      place = 1 + (i - 1) % settings.context
      bank, masks = _put(bank, masks, place, x, y)
    yield np.asarray(y).reshape(rows, columns, labels)


def _normalize(x):
  x = x.astype(jnp.float32)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, donate_argnums=(0, 1))
def _put(bank, masks, place, x, y):
  return bank.at[place].set(x), masks.at[place].set(y)


def _kth_largest(x, k):
  """Of each row of [N, M], equal entries counted each: [N, 1].

  The k largest entries lie in k groups of neighbours, those whose largest entries are largest;
  among these few, they are found going down from value to value. On CPUs that takes a fraction of
  the time of `lax.top_k`, which sorts.
  """
  if k > PASSES:
    return jax.lax.top_k(x, k)[0][:, -1:]
  rows, count = x.shape
  if count > k * GROUP:
    x = jnp.pad(x, ((0, 0), (0, -count % GROUP)), constant_values=-jnp.inf)
    x = x.reshape(rows, -1, GROUP)
    most, chosen = x.max(-1), []
    for _ in range(k):
      group = most.argmax(-1, keepdims=True)
      own = jnp.take_along_axis(x, group[..., None], 1)[:, 0]
      # Once nothing but -inf is left, the first group comes again, and must not count again.
      chosen.append(jnp.where(jnp.take_along_axis(most, group, 1) > -jnp.inf, own, -jnp.inf))
      most = most.at[jnp.arange(rows)[:, None], group].set(-jnp.inf)
    x = jnp.concatenate(chosen, -1)
  least = x.max(-1, keepdims=True)
  for _ in range(k - 1):
    enough = (x >= least).sum(-1, keepdims=True) >= k
    least = jnp.where(enough, least, jnp.where(x < least, x, -jnp.inf).max(-1, keepdims=True))
  return least


@partial(jax.jit, static_argnames=("neighbours", "temperature"))
def _next(x, bank, masks, near, filled, *, neighbours, temperature):
  """x [N, D], bank [T, N, D], masks [T, N, K], near [N, N] -> [N, K]."""
  frames, count, _ = bank.shape
  bank, masks = bank.reshape(frames * count, -1), masks.reshape(frames * count, -1)
  there = jnp.repeat(jnp.arange(frames) < filled, count)

  def some(rows):
    x, near = rows
    cosine = jnp.matmul(x, bank.T, precision="float32")
    cosine = jnp.where(jnp.tile(near, (1, frames)) & there, cosine, -jnp.inf)
    least = _kth_largest(cosine, min(neighbours, frames * count))
    weights = jnp.exp((cosine - cosine.max(-1, keepdims=True)) / temperature)
    weights = jnp.where(cosine >= least, weights, 0)
    return jnp.matmul(weights, masks, precision="float32") / weights.sum(-1, keepdims=True)

  together = SIMILARITIES.get(jax.default_backend(), OTHERWISE)
  chunk = max(1, min(count, together // (frames * count)))
  padding = -count % chunk
  # Patches that only fill the last chunk up may look everywhere: nothing is made of them.
  x = jnp.pad(x, ((0, padding), (0, 0))).reshape(-1, chunk, x.shape[1])
  near = jnp.pad(near, ((0, padding), (0, 0)), constant_values=True).reshape(-1, chunk, count)
  return jax.lax.map(some, (x, near)).reshape(-1, masks.shape[1])[:count]


def sample_labels(labels, rows: int, columns: int) -> np.ndarray:
  """A mask on the grid of patches, by the pixel at the centre of each.

  Args:
    labels: integers [H, W].

  Returns:
    The same dtype, [rows, columns].
  """
  labels = np.asarray(labels)
  centre = lambda side, count: ((np.arange(count) + 0.5) * side / count).astype(int)
  return labels[centre(labels.shape[0], rows)[:, None], centre(labels.shape[1], columns)]


def to_pixels(soft, height: int, width: int, method: Literal["bilinear", "nearest"] = "bilinear",
              stretch: bool = False) -> np.ndarray:
  """The label of each pixel: soft labels are resized and the largest wins.

  The paper resizes bilinearly. The reference's notebook takes "nearest" with `stretch`, DINO's code
  "bilinear" with it.

  Args:
    soft: [h, w, K].
    method: of the resizing; nearest is that of PyTorch, floor(i h / height).
    stretch: bring each label to [0, 1] over the frame first.

  Returns:
    uint8 [height, width].
  """
  soft = jnp.asarray(soft, jnp.float32)
  rows, columns, labels = soft.shape
  if method == "nearest":
    soft = soft[(np.arange(height) * rows // height)[:, None], np.arange(width) * columns // width]
  elif method == "bilinear":
    soft = jax.image.resize(soft, (height, width, labels), "bilinear", antialias=False)
  else:
    raise ValueError(f'the method must be "bilinear" or "nearest", not {method!r}')
  if stretch:
    least, most = soft.min((0, 1)), soft.max((0, 1))
    soft = jnp.where(most > least, (soft - least) / jnp.where(most > least, most - least, 1), 0)
  return np.asarray(soft.argmax(-1), np.uint8)


def frame_size(height: int, width: int, short: int, patch: int) -> tuple[int, int]:
  """The size at which frames are seen: both sides whole patches, as in the reference's notebook.

  The short side is `short`, rounded up to patches; the long one keeps the aspect ratio and is
  rounded up as well.
  """
  up = lambda side: -(-side // patch) * patch
  least = min(height, width)
  target = up(short)
  scale = lambda side: target if side == least else up(-(-side * target // least))
  return scale(height), scale(width)
