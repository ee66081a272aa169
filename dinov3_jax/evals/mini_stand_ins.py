"""Stand-ins for backbones: what is known of the pixels of a patch, in place of features."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

STEP = 28  # of 255: a channel of a colour that stands for a class is a digit times this
Known = Callable[[jax.Array], jax.Array]  # of pixels [..., 3] in [0, 1], [..., D]


class PatchMeans(nnx.Module):
  """The mean over the pixels of each patch, and over those of the image, of what is known of them.

  Args:
    patch_size: pixels.
    known: of pixels; None: their colours.
  """

  def __init__(self, patch_size: int, known: Known | None = None):
    self.patch_size, self.known = patch_size, known
    self.scale = nnx.Param(jnp.ones(3))  # a model has parameters

  def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
    """`cls` [B, D] and `patches` [B, N, D] of images [B, H, W, 3]."""
    count, height, width, _ = images.shape
    p = self.patch_size
    x = images[:, :height // p * p, :width // p * p] * self.scale[...]
    x = x if self.known is None else self.known(x)
    patches = x.reshape(count, height // p, p, width // p, p, -1).mean((2, 4))
    return dict(cls=patches.mean((1, 2)), patches=patches.reshape(count, -1, x.shape[-1]))

  def features(self, images: jax.Array, layers: int = 1, *, norm: bool = True):
    """As of a backbone; there is no norm to leave out."""
    return [self(images)]


def classes(pixels: jax.Array, count: int) -> jax.Array:
  """The classes that colours stand for, as `mini_truth.colours` has them, one-hot [..., count]."""
  digits = jnp.round(pixels * 255 / STEP).astype(jnp.int32)
  return jax.nn.one_hot(digits @ jnp.array([100, 10, 1]), count)


def places(pixels: jax.Array) -> jax.Array:
  """Waves [..., 18] of each channel: their cosine falls with the distance of two colours."""
  angles = jnp.pi * pixels[..., None] * jnp.array([0.5, 2, 4])
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1).reshape(*pixels.shape[:-1], 18)


def levels(pixels: jax.Array) -> jax.Array:
  """Hats [..., 64] over the first channel: any piecewise linear function of it is a sum of them."""
  return jax.nn.relu(1 - abs(63 * pixels[..., :1] - jnp.arange(64)))
