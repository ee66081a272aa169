"""Photometric augmentation on the device: `augment`, for batches of uint8 crops in JAX.

What is done to each crop was drawn on the host, from the seed and the number of its image
(`augment.draw_color`, `augment.draw_tone`); it travels with the crops, so the stream does not
depend on the devices. Each operation rounds to levels of 8 bits, as OpenCV does on the host.
"""

import jax
import jax.numpy as jnp

from dinov3_jax.data import augment

COUNT = len(augment.CENTERS)
SHIFT = 12  # bits of OpenCV's fixed-point divisions by a value, of RGB to HSV


def distort_batch(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """A batch whose crops are distorted as its `colors` say; one without any as it is.

  Args:
    batch: on the devices, with `global_crops` [B, 2, G, G, 3] and `local_crops` [B, L, l, l, 3]
      uint8, and `colors` float32 [B, 2 + L, DRAWN] of `MultiCrop`.

  Returns:
    The batch without `colors`, its crops uint8 still.
  """
  if "colors" not in batch:
    return batch
  rest = dict(batch)
  colors = rest.pop("colors")
  names = ("global_crops", "local_crops")
  return rest | dict(zip(names, _distort_both(*(rest[name] for name in names), colors)))


@jax.jit
def _distort_both(global_crops: jax.Array, local_crops: jax.Array, colors: jax.Array):
  count = global_crops.shape[1]
  return distort(global_crops, colors[:, :count]), distort(local_crops, colors[:, count:])


def distort(crops: jax.Array, drawn: jax.Array) -> jax.Array:
  """Distorts crops.

  Args:
    crops: uint8 [..., H, W, 3].
    drawn: float32 [..., DRAWN], rows of `augment.as_row`.

  Returns:
    uint8 [..., H, W, 3].
  """
  drawn = drawn[..., None, None, None, :]  # over height, width and channels
  order, amounts = drawn[..., :COUNT], drawn[..., COUNT : 2 * COUNT]
  gray, sigma, solarized = (drawn[..., 2 * COUNT + i] for i in range(3))
  ops = adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue

  def turn(x, chosen):
    """What comes next for each crop."""
    found = x
    for i, op in enumerate(ops):
      found = jnp.where(chosen == i, op(x, amounts[..., i]), found)
    return found, None

  # A loop: fused over all four turns, what one of them needs twice would be computed 16 times.
  x, _ = jax.lax.scan(turn, crops.astype(jnp.float32), jnp.moveaxis(order, -1, 0))
  x = jnp.where(gray > 0, luma(x), x)
  x = jnp.where(sigma > 0, gaussian_blur(x, jnp.maximum(sigma, augment.BLUR_SIGMA[0])), x)
  x = jnp.where((solarized > 0) & (x >= augment.SOLARIZE_THRESHOLD), 255 - x, x)
  return x.astype(jnp.uint8)


def _levels(x: jax.Array) -> jax.Array:
  return jnp.clip(jnp.round(x), 0, 255)


def luma(x: jax.Array) -> jax.Array:
  """Grey levels [..., H, W, 1] of RGB, in OpenCV's fixed point."""
  r, g, b = (x[..., i : i + 1].astype(jnp.int32) for i in range(3))
  return ((r * 9798 + g * 19235 + b * 3735 + (1 << 14)) >> 15).astype(jnp.float32)


def adjust_brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
  """`augment.adjust_brightness` of levels [..., H, W, 3] in floats, as those below."""
  return _levels(x * factor)


def adjust_contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
  level = jnp.floor(luma(x).mean((-3, -2, -1), keepdims=True) + 0.5)
  return _levels(x * factor + level * (1 - factor))


def adjust_saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
  return _levels(x * factor + luma(x) * (1 - factor))


def adjust_hue(x: jax.Array, turn: jax.Array) -> jax.Array:
  """Through HSV of 8 bits each."""
  r, g, b = (x[..., i].astype(jnp.int32) for i in range(3))
  value = jnp.maximum(jnp.maximum(r, g), b)
  span = value - jnp.minimum(jnp.minimum(r, g), b)
  half = 1 << (SHIFT - 1)
  saturation = (span * _division(255, value) + half) >> SHIFT
  sector = jnp.where(value == r, g - b, jnp.where(value == g, b - r + 2 * span, r - g + 4 * span))
  hue = (sector * _division(256 / 6, span) + half) >> SHIFT
  hue = (hue + jnp.round(turn[..., 0] * 256).astype(jnp.int32)) & 255
  # And back, in floats.
  s, v = saturation / 255, value.astype(jnp.float32)
  h = hue * (6 / 255)

  def channel(n):
    k = h + n
    k = jnp.where(k >= 6, k - 6, k)
    return v - v * s * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

  return _levels(jnp.stack([channel(5), channel(3), channel(1)], -1))


def _division(numerator: float, value: jax.Array) -> jax.Array:
  """The factor by which OpenCV divides by integers, rounded as it does; tables are slow on TPUs."""
  return jnp.round((numerator * 2**SHIFT) / jnp.maximum(value, 1)).astype(jnp.int32)


def gaussian_blur(x: jax.Array, sigma: jax.Array) -> jax.Array:
  """9 x 9, reflected at the border; sigma broadcasts over crops."""
  radius = augment.BLUR_KERNEL // 2
  weights = [jnp.exp(-(i * i) / (2 * sigma * sigma)) for i in range(radius + 1)]
  total = weights[0] + 2 * sum(weights[1:])
  for axis in (-3, -2):
    size = x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = (radius, radius)
    padded = jnp.pad(x, padding, mode="reflect")
    part = lambda i, padded=padded, size=size, axis=axis: jax.lax.slice_in_dim(
      padded, i, i + size, axis=padded.ndim + axis)
    x = sum(weights[abs(i)] / total * part(radius + i) for i in range(-radius, radius + 1))
  return _levels(x)
