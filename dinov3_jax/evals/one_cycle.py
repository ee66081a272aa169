"""Schedules of the dense probes: a warm-up into a cosine, as the reference computes them."""

import numpy as np


def segmentation(peak: float, steps: int, warmup: int) -> np.ndarray:
  """Learning rates of the segmentation probe, float64 [steps].

  In the warm-up peak (1 - (1 - t/warmup)(1 - 1e-6)) (1 - t/steps), then
  peak/2 (1 + cos(pi (t+1)/steps)). The reference's trainer does not step it after its first step:
  its step i takes entry max(i - 1, 0).
  """
  t = np.arange(steps)
  rising = peak * (1 - (1 - t / max(warmup, 1)) * (1 - 1e-6)) * (1 - t / steps)
  return np.where(t < warmup, rising, peak / 2 * (1 + np.cos(np.pi * (t + 1) / steps)))


def depth(peak: float, steps: int, warmup: int) -> tuple[np.ndarray, np.ndarray]:
  """Learning rates and AdamW's beta1 of the depth probe, float64 [steps] each.

  In the warm-up peak/1000 + peak/2 (1 + cos(pi t/steps)) t/warmup, then a cosine to peak/25000.
  beta1 is 0 in the warm-up, then goes from 0.85 to 0.95 along a cosine.
  """
  t = np.arange(steps)
  least = peak / 25000
  rising = peak / 1000 + peak / 2 * (1 + np.cos(np.pi * t / steps)) * t / max(warmup, 1)
  falling = least + (peak - least) / 2 * (1 + np.cos(np.pi * (t + 1) / steps))
  beta = 0.95 - 0.05 * (1 + np.cos(np.pi * (t - warmup) / max(steps - warmup, 1)))
  return np.where(t < warmup, rising, falling), np.where(t < warmup, 0, beta)
