"""Dense predictions for images of any size, by windows that overlap."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def resize(x: jax.Array, height: int, width: int) -> jax.Array:
  """Bilinear between pixel centres, edges repeated, not antialiased: [..., h, w, C] to float32."""
  shape = (*x.shape[:-3], height, width, x.shape[-1])
  return jax.image.resize(jnp.asarray(x, jnp.float32), shape, "bilinear", antialias=False)


def windows(height: int, width: int, window: int, stride: int) -> list[tuple[int, int, int, int]]:
  """Where windows lie: (top, left, height, width), row by row.

  They are squares; the last ones of rows and columns are moved back into the image. Where the image
  is lower or narrower, they are as low or narrow. Where both of its sides are smaller than the
  window, the window is a square of the shorter one, as in the reference.
  """
  if height < window and width < window:
    window = min(height, width)
    stride = min(stride, window)
  starts = lambda side: [min(i * stride, max(side - window, 0))
                         for i in range(max(side - window + stride - 1, 0) // stride + 1)]
  return [(top, left, min(window, height), min(window, width))
          for top in starts(height) for left in starts(width)]


def predict(logits: Callable[[jax.Array], jax.Array], image, window: int, stride: int,
            size: tuple[int, int] | None = None) -> np.ndarray:
  """Logits of an image: the mean over the windows that see a pixel.

  Args:
    logits: maps [1, h, w, 3] to [1, h', w', C]; h' and w' may be smaller.
    image: float [H, W, 3].
    window: side in pixels.
    stride: from a window to the next.
    size: (height, width) of the result, to which it is resized at last; None: the image's.

  Returns:
    float32 [height, width, C].

  Raises:
    ValueError: a stride or a window below 1, or a stride above the window, which leaves gaps.
  """
  if not 1 <= stride <= window:
    raise ValueError(f"the stride must lie between 1 and the window of {window}, not {stride}")
  height, width = image.shape[:2]
  total = count = 0
  for top, left, h, w in windows(height, width, window, stride):
    part = resize(logits(jnp.asarray(image)[None, top:top + h, left:left + w]), h, w)[0]
    around = ((top, height - top - h), (left, width - left - w), (0, 0))
    total += jnp.pad(part, around)
    count += jnp.pad(jnp.ones((h, w, 1)), around)
  return np.asarray(resize(total / count, *(size or (height, width))))
