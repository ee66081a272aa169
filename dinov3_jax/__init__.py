"""DINOv3 in JAX.

  train       trains a recipe, or goes on training
  load        a backbone from anybody's weights
  preprocess  what its images go through
  features    of files, folders or pictures
  evaluate    frozen features, by the protocols of the paper
  export      a model in a format that others read
  recipes     by name or file: their settings
  VARIANTS    the sizes there are

`help(dinov3_jax.main.train)` and so on say more.
"""

import importlib

__version__ = "0.1.0"

# Imported when asked for, so that the commands of this package start without each other's needs.
_HOMES = {
    "VARIANTS": "dinov3_jax.models.variants",
    "load": "dinov3_jax.weights.loading",
    "load_text": "dinov3_jax.text.loading",
    "preprocess": "dinov3_jax.data.preprocess",
}
# Most of them can be called; see `callable_module`.
_MODULES = ("evaluate", "export", "features", "recipes", "train")
__all__ = sorted([*_HOMES, *_MODULES])


def __getattr__(name):
  if name in _MODULES:
    return importlib.import_module(f"{__name__}.{name}")
  if name not in _HOMES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
  return sorted([*globals(), *__all__])
