"""Zero-shot classification: the nearest class name, written in many ways (section 6.3)."""

import functools
from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np


@functools.cache
def prompts() -> tuple[str, ...]:
  """CLIP's 80 templates; `{}` stands for the name of a class."""
  return _lines("prompts.txt")


@functools.cache
def imagenet_names() -> tuple[str, ...]:
  """CLIP's names of ImageNet's 1,000 classes, in the order of their WordNet ids."""
  return _lines("imagenet_names.txt")


def class_features(encode: Callable[[list[str]], np.ndarray], names: Sequence[str],
                   templates: Sequence[str]) -> np.ndarray:
  """A feature for each class: the mean over the templates, of unit length again.

  Args:
    encode: captions to features of unit length, [B, D].
    names: of the classes.
    templates: captions with `{}` for a name.

  Returns:
    float32 [len(names), D].
  """
  features = []
  for name in names:
    mean = np.mean(encode([template.replace("{}", name) for template in templates]), axis=0)
    features.append(mean / max(np.linalg.norm(mean), 1e-12))
  return np.stack(features).astype(np.float32)


def accuracy(images: np.ndarray, classes: np.ndarray, labels: np.ndarray,
             ranks: Sequence[int] = (1, 5)) -> dict[str, float]:
  """The share of images whose class is among the nearest, `top1` and so on.

  Args:
    images: float [N, D], of unit length.
    classes: float [K, D], of unit length.
    labels: int [N], of each image.
    ranks: how many nearest classes count; those of K and more are left out but for the first.

  Of classes that are equally near, as those of one name are, the first comes first.
  """
  similarities = images @ classes.T
  own = similarities[np.arange(len(labels)), labels][:, None]
  earlier = np.arange(len(classes)) < np.asarray(labels)[:, None]
  before = np.sum((similarities > own) | ((similarities == own) & earlier), axis=1)
  return {f"top{rank}": float(np.mean(before < rank)) for rank in ranks
          if rank == 1 or rank < len(classes)}


def _lines(name: str) -> tuple[str, ...]:
  text = (resources.files("dinov3_jax.text") / name).read_text(encoding="utf-8")
  return tuple(text.splitlines())
