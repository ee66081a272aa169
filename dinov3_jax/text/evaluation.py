"""dino.txt watched while it learns: recall and zero-shot accuracy on held-out pairs."""

import logging
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from dinov3_jax.data.pairs import Pairs
from dinov3_jax.text.backbone import Backbone
from dinov3_jax.text.encoding import make_encode
from dinov3_jax.text.retrieval import recall
from dinov3_jax.text.state import TextState
from dinov3_jax.text.tokenizer import Tokenizer
from dinov3_jax.text.zeroshot import accuracy, class_features, prompts
from dinov3_jax.train.evaluation import BATCH, read_images
from dinov3_jax.train.sharding import data_shards, local_shards, place_batch

log = logging.getLogger(__name__)


class TextEvaluation:
  """Every `config.evals.every` steps and after the last: recall, and zero-shot accuracy.

  `image_to_text_01`, `_05`, `_10` and `text_to_image_*` are recalls among at most
  `config.evals.images` held-out images, each with the first of its captions. `zeroshot_top1` and
  `zeroshot_top5` are of those that have a label, by the classes' names in `config.evals.templates`.
  """

  def __init__(self, config, mesh: Mesh, backbone: Backbone, held_out: Pairs,
               tokenizer: Tokenizer, done: int | None = None):
    """Args:
      config: of the run.
      mesh: of the devices.
      backbone: the frozen one.
      held_out: images and captions.
      tokenizer: of the captions.
      done: the step whose evaluation is known already, from before a restart.
    """
    self._config, self._mesh, self._backbone, self._done = config, mesh, backbone, done
    self._tokenizer, self._pairs = tokenizer, held_out
    shards = data_shards(mesh)
    self._batch = -(-BATCH // shards) * shards
    self._rows = np.arange(self._batch).reshape(shards, -1)[local_shards(mesh)].ravel()
    self._encode_images, self._encode_texts = make_encode(config, backbone.settings, mesh)
    count = min(config.evals.images, len(held_out))
    self._chosen = np.sort(np.random.default_rng(0).choice(len(held_out), count, replace=False))

  def __call__(self, step: int, state: TextState, metrics: dict[str, float]):
    every = self._config.evals.every
    if step != self._done and (step % every == 0 or step == self._config.train.steps):
      metrics |= self.measure(state.student)

  def close(self):
    pass

  def measure(self, student) -> dict[str, float]:
    """What the trained parameters reach; with several processes, all must call it."""
    images, found = self._images(student)
    texts = self._texts(student, [self._pairs.captions[i][0] for i in self._chosen])
    result = recall(images[found], texts[found], range(found.sum()))
    labels = self._pairs.labels
    if labels is None:
      return result
    labels = labels[self._chosen]
    known = found & (labels >= 0)
    if known.any():
      classes = class_features(lambda texts: self._texts(student, texts), self._pairs.classes,
                               self._config.evals.templates or prompts())
      result |= {f"zeroshot_{name}": value for name, value in
                 accuracy(images[known], classes, labels[known]).items()}
    return result

  def _images(self, student) -> tuple[np.ndarray, np.ndarray]:
    """Features of the chosen images, and which could be read."""
    rows, found = [], []
    size = self._config.images.size
    for batch in read_images(self._pairs, self._chosen, size, self._batch, self._rows):
      placed = place_batch(batch["images"], self._mesh)
      rows.append(_everywhere(
        self._encode_images(self._backbone.params, student, placed)["global"]))
      found.append(_everywhere(place_batch(batch["found"], self._mesh)))
    count = len(self._chosen)
    return np.concatenate(rows)[:count], np.concatenate(found)[:count]

  def _texts(self, student, texts: Sequence[str]) -> np.ndarray:
    return in_batches(
      lambda ids: _everywhere(self._encode_texts(
        student, place_batch(ids[self._rows], self._mesh))["global"]),
      self._tokenizer(texts, self._config.text.context), self._batch)


def in_batches(f: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, batch: int) -> np.ndarray:
  """`f` of rows, so many at once; the last batch is filled up with the last row."""
  results = []
  for start in range(0, len(rows), batch):
    part = rows[start:start + batch]
    filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
    results.append(np.asarray(f(filled))[:len(part)])
  return np.concatenate(results)


def _everywhere(x: jax.Array) -> np.ndarray:
  """A spread array, whole, in every process."""
  return np.asarray(multihost_utils.process_allgather(x, tiled=True))
