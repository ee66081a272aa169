"""Windows over an image against recorded logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.evals import sliding


def cells(side, count):
  """The weights of pixels in `count` means, [count, side]."""
  weights = np.zeros((count, side), np.float32)
  for i in range(count):
    weights[i, 4 * i:4 * i + 4] = 1
  return weights / weights.sum(1, keepdims=True)


def stand_in(x):
  """What was slid over the image: means of 4 x 4 pixels, fewer at the ends, and each window's own
  rows, -1 to 1."""
  batch, height, width, _ = x.shape
  h, w = -(-height // 4), -(-width // 4)
  means = jnp.einsum("ih,bhwc,jw->bijc", cells(height, h), x, cells(width, w), precision="float32")
  rows = jnp.broadcast_to(jnp.linspace(-1, 1, h)[None, :, None, None], (batch, h, w, 1))
  return jnp.concatenate([means, rows], axis=-1)


@pytest.mark.parametrize("i", range(4))
def test_recorded(golden, i):
  arrays = golden("evals/slide_inference")
  window, _, stride, _, height, width = arrays[f"setting_{i}"].tolist()
  image = arrays["image"].transpose(1, 2, 0)
  result = sliding.predict(stand_in, image, window, stride, (height, width))
  np.testing.assert_allclose(result.transpose(2, 0, 1), arrays[f"logits_{i}"], atol=2e-3)


def test_flipped(golden):
  """Of an image that is taken for flipped, the logits are turned back."""
  arrays = golden("evals/slide_inference")
  image = arrays["image"].transpose(1, 2, 0)
  logits = sliding.predict(stand_in, image, 16, 10, (60, 80))[:, ::-1]
  np.testing.assert_allclose(jax.nn.softmax(logits).transpose(2, 0, 1),
                             arrays["flipped_softmax_0"], atol=2e-3)


@pytest.mark.parametrize("height, width, window, stride", [
  (37, 52, 16, 10), (20, 60, 32, 20), (16, 16, 16, 16), (5, 9, 16, 10), (4, 15, 16, 12)])
def test_windows_cover_the_image(height, width, window, stride):
  seen = np.zeros((height, width), int)
  for top, left, h, w in sliding.windows(height, width, window, stride):
    assert 0 <= top <= height - h and 0 <= left <= width - w
    seen[top:top + h, left:left + w] += 1
  assert seen.min() >= 1


def test_a_stride_that_leaves_gaps():
  with pytest.raises(ValueError, match="between 1 and the window of 4, not 5"):
    sliding.predict(stand_in, np.zeros((8, 8, 3)), 4, 5)
