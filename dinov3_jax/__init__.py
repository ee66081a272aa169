"""DINOv3 in JAX: `load` a backbone, `preprocess` images for it, and look at its features."""

import importlib

__version__ = "0.1.0"

# Imported when asked for, so that the commands of this package start without each other's needs.
_HOMES = {
    "VARIANTS": "dinov3_jax.models.variants",
    "load": "dinov3_jax.weights.loading",
    "load_text": "dinov3_jax.text.loading",
    "preprocess": "dinov3_jax.data.preprocess",
}
__all__ = ["VARIANTS", "load", "load_text", "preprocess"]


def __getattr__(name):
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
  return sorted([*globals(), *__all__])
