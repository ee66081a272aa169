"""Networks that are none of ours: a function of JAX, and tiny models of transformers."""

import jax
import jax.numpy as jnp
import numpy as np

PATCH, WIDTH = 8, 12
KERNEL = np.random.default_rng(0).normal(size=(PATCH * PATCH * 3, WIDTH)).astype(np.float32)


def pixels(images):
  """Patches are random projections of their pixels, CLS is their mean."""
  n, h, w, c = images.shape
  x = images.reshape(n, h // PATCH, PATCH, w // PATCH, PATCH, c).swapaxes(2, 3)
  patches = jnp.tanh(x.reshape(n, -1, PATCH * PATCH * c) @ KERNEL / PATCH)
  return patches.mean(1), patches


pixels.width, pixels.patch_size, pixels.mean = WIDTH, PATCH, (0.5, 0.5, 0.5)


def on_host(images):
  """The same, of NumPy's arrays alone."""
  assert isinstance(images, np.ndarray) and images.dtype == np.float32
  n, h, w, c = images.shape
  x = images.reshape(n, h // PATCH, PATCH, w // PATCH, PATCH, c).swapaxes(2, 3)
  patches = np.tanh(x.reshape(n, -1, PATCH * PATCH * c) @ KERNEL / PATCH)
  return patches.mean(1), patches


def patches_alone(images):
  return pixels(images)[1]


def breaks(images):
  raise RuntimeError("out of order\nand more")


nothing = 7
jitted = jax.jit(pixels)


def save_dinov2(folder, seed=0):
  """A tiny DINOv2 with random weights, trained on images of 16 px."""
  import torch
  from transformers import Dinov2Config, Dinov2Model
  torch.manual_seed(seed)
  Dinov2Model(Dinov2Config(hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
                           image_size=16, patch_size=8)).save_pretrained(folder)
  return str(folder)


def save_siglip(folder):
  """A tiny SigLIP, whose vision tower has no CLS token."""
  import torch
  from transformers import SiglipVisionConfig, SiglipVisionModel
  torch.manual_seed(0)
  SiglipVisionModel(SiglipVisionConfig(
    hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16,
    patch_size=8)).save_pretrained(folder)
  return str(folder)
