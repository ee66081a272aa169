"""Rotary position embedding over the patch grid (DINOv3, section 3.1)."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Rope:
  """Axial RoPE: half of each head's frequencies turn with the row, half with the column.

  Patch centres are mapped to [-1, 1] whatever the image's size, so a crop at another resolution
  sees the same positions. In training the whole grid may be shifted, stretched per axis (jitter)
  and scaled (rescale); each factor is drawn anew for every block and crop kind.

  Attributes:
    base: periods are `base ** (4 i / head_dim)`; 0 spaces them from `min_period` to `max_period`.
    normalize: "separate" divides rows by the height and columns by the width; "max" and "min"
      divide both by the longer or the shorter side.
    shift: both coordinates move by U(-shift, shift) each.
    jitter: both are multiplied by exp(U(-ln jitter, ln jitter)) each.
    rescale: both are multiplied by one exp(U(-ln rescale, ln rescale)).
    dtype: "float32", or "bfloat16": tables and rotation rounded as in the reference's training.
  """

  head_dim: int
  base: float = 100.0
  min_period: float | None = None
  max_period: float | None = None
  normalize: str = "separate"
  shift: float | None = None
  jitter: float | None = None
  rescale: float | None = None
  dtype: str = "float32"

  def __post_init__(self):
    if self.head_dim % 4:
      raise ValueError(f"RoPE needs a head width that 4 divides, not {self.head_dim}")
    if bool(self.base) == (self.min_period is not None and self.max_period is not None):
      raise ValueError("RoPE takes either a base, or base=0 with min_period and max_period")
    if self.normalize not in ("separate", "max", "min"):
      raise ValueError(f"rope.normalize must be separate, max or min, not {self.normalize!r}")
    if self.dtype not in ("float32", "bfloat16"):
      raise ValueError(f"rope.dtype must be float32 or bfloat16, not {self.dtype!r}")

  @property
  def periods(self) -> np.ndarray:
    """The periods, [head_dim / 4] float32, rounded to `dtype`."""
    n = self.head_dim // 4
    if self.base:
      periods = self.base ** (np.arange(n) / n)
    else:
      periods = self.max_period * (self.max_period / self.min_period) ** (np.linspace(0, 1, n) - 1)
    return periods.astype(self.dtype).astype(np.float32)

  def tables(self, height: int, width: int, key: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """Sine and cosine of every patch's angles, each [height * width, head_dim] of `dtype`.

    The first half of the last axis holds the frequencies of the row, then those of the column; the
    second half repeats them. Without a `key` nothing is augmented.
    """
    round_ = _rounding(self.dtype)
    sides = dict(separate=(height, width), max=(max(height, width),) * 2,
                 min=(min(height, width),) * 2)[self.normalize]
    rows = round_((jnp.arange(height) + 0.5) / sides[0])
    columns = round_((jnp.arange(width) + 0.5) / sides[1])
    coords = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    coords = round_(2 * coords - 1)
    if key is not None:
      shift_key, jitter_key, rescale_key = jax.random.split(key, 3)
      draw = lambda key, n, bound: round_(
          jax.random.uniform(key, (n,), minval=-bound, maxval=bound))
      if self.shift is not None:
        coords = round_(coords + draw(shift_key, 2, self.shift))
      if self.jitter is not None:
        coords = round_(coords * round_(jnp.exp(draw(jitter_key, 2, math.log(self.jitter)))))
      if self.rescale is not None:
        coords = round_(coords * round_(jnp.exp(draw(rescale_key, 1, math.log(self.rescale)))))
    angles = round_(round_(2 * math.pi * coords)[:, :, None] / self.periods)
    angles = jnp.tile(angles.reshape(len(coords), -1), 2)
    return jnp.sin(angles).astype(self.dtype), jnp.cos(angles).astype(self.dtype)


def rotate(x: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
  """Rotates the last patches of queries or keys; the tokens before them stay as they are.

  Args:
    x: [B, T, heads, head_dim].
    sin, cos: tables of the last N of the T tokens, [N, head_dim]. The rotation rounds to their
      dtype.
  """
  # Tables of the full length, because cutting and joining x along the tokens would copy it.
  pad = ((x.shape[1] - sin.shape[0], 0), (0, 0))
  sin, cos = jnp.pad(sin, pad)[:, None], jnp.pad(cos, pad, constant_values=1)[:, None]
  round_, float32 = _rounding(sin.dtype), lambda x: x.astype(jnp.float32)
  a, b = jnp.split(round_(float32(x)), 2, axis=-1)
  (sin, _), (cos, _) = (jnp.split(float32(table), 2, axis=-1) for table in (sin, cos))
  turned = [round_(a * cos) - round_(b * sin), round_(b * cos) + round_(a * sin)]
  return jnp.concatenate([round_(half) for half in turned], axis=-1).astype(x.dtype)


def _rounding(dtype: jnp.dtype) -> Callable[[jax.Array], jax.Array]:
  """Rounds float32 to the numbers of `dtype`, float32 or bfloat16.

  Compilers may keep chains of bfloat16 in float32. Where they do not, a CPU takes several times as
  long for the conversions as for this.
  """
  if jnp.dtype(dtype) == jnp.float32:
    return lambda x: x
  return lambda x: jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
