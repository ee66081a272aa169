"""Recall of captions by images, and of images by captions."""

from collections.abc import Sequence

import numpy as np

RANKS = (1, 5, 10)
ROWS = 1024  # queries at once


def recall(images: np.ndarray, texts: np.ndarray, owners: Sequence[int],
           ranks: Sequence[int] = RANKS) -> dict[str, float]:
  """The share of queries for which a right answer is among the nearest.

  Args:
    images: float [N, D], of unit length.
    texts: float [M, D], of unit length.
    owners: int [M], the image of each text; an image may have several.
    ranks: how many nearest count.

  Returns:
    `image_to_text_KK` and `text_to_image_KK` for every rank, shares of 1. For an image any one of
    its own texts will do.

  Raises:
    ValueError: an owner that is no image.
  """
  owners = np.asarray(owners)
  if len(owners) != len(texts) or not np.isin(owners, np.arange(len(images))).all():
    raise ValueError(f"{len(texts)} texts need an owner each among {len(images)} images")
  to_text = _first(images, texts, lambda rows: owners[None] == rows[:, None])
  to_image = _first(texts, images, lambda rows: np.arange(len(images))[None] == owners[rows, None])
  return {f"{name}_{rank:02}": float(np.mean(places < rank))
          for name, places in (("image_to_text", to_text), ("text_to_image", to_image))
          for rank in ranks}


def _first(queries: np.ndarray, keys: np.ndarray, right) -> np.ndarray:
  """For each query how many wrong keys come before the first right one; ties count as before."""
  places = []
  for start in range(0, len(queries), ROWS):
    rows = np.arange(start, min(start + ROWS, len(queries)))
    similarities = queries[rows] @ keys.T
    is_right = right(rows)
    best = np.where(is_right, similarities, -np.inf).max(axis=1, keepdims=True)
    places.append(np.sum((similarities >= best) & ~is_right, axis=1))
  return np.concatenate(places)
