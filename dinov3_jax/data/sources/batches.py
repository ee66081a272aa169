"""Batches of whole images, for evaluations."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging

from dinov3_jax.data.crops import center_crop
from dinov3_jax.data.decode import DamagedImage
from dinov3_jax.data.sources.base import Source


def eval_batches(source: Source, size: int, batch_size: int, limit: int | None = None,
                 resize: int | None = None, seed: int = 0, threads: int = 4
                 ) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
  """Images as evaluations see them: middle squares, in the source's order, each once.

  Damaged images are left out, and named in the log.

  Args:
    source: of the images.
    size, resize: see `crops.center_crop`.
    batch_size: images a batch.
    limit: at most so many images, a random sample that depends on `seed` alone; None for all. (The
      first so many of a folder would be its first classes.)
    seed: of the sample.
    threads: that decode.

  Yields:
    images uint8 [batch_size, size, size, 3], labels int [n], names [n]. n is the batch size but
    for the last batch, whose remaining images are zeros, so that a compiled function sees one
    shape: `features(images)[:len(labels)]`.
  """
  def load(index: int) -> dict | None:
    try:
      item = source[index]
    except DamagedImage as error:
      logging.warning("Left out: %s.", error)
      return None
    return {**item, "image": center_crop(item["image"], size, resize)}

  def batch(items: list[dict]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    images = np.zeros((batch_size, size, size, 3), np.uint8)
    for i, item in enumerate(items):
      images[i] = item["image"]
    return images, np.array([item["label"] for item in items]), [item["name"] for item in items]

  indices = np.arange(len(source))
  if limit is not None and limit < len(indices):
    indices = np.sort(np.random.default_rng(seed).permutation(indices)[:limit])
  with ThreadPoolExecutor(threads) as pool:
    items = []
    for start in range(0, len(indices), batch_size):
      items += filter(None, pool.map(load, indices[start : start + batch_size].tolist()))
      if len(items) >= batch_size:
        yield batch(items[:batch_size])
        items = items[batch_size:]
    if items:
      yield batch(items)
