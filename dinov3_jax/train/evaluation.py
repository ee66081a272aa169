"""The teacher watched while it learns: k-NN on held-out images, and pictures of its patches."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.data.crops import center_crop
from dinov3_jax.data.sources import DamagedImage, Source
from dinov3_jax.data.sources.mixture import labelled
from dinov3_jax.evals import pca
from dinov3_jax.evals.knn import knn_accuracy
from dinov3_jax.models.partition import DATA_AXES, local_spec
from dinov3_jax.train.hooks import picture_name
from dinov3_jax.train.objective import forward as forward_backbone
from dinov3_jax.train.objective import normalise
from dinov3_jax.train.sharding import data_shards, local_shards, on_shards, param_specs, place_batch
from dinov3_jax.train.state import Params, TrainState, abstract_modules

log = logging.getLogger(__name__)

BATCH = 64  # images that go through the network at once, about


def read_images(source: Source, indices: Sequence[int], size: int, batch: int,
                rows: Sequence[int] | None = None) -> Iterator[dict[str, np.ndarray]]:
  """Batches of the images that evaluations see, the last one filled up with black.

  The shorter side becomes 8/7 of `size` (256 for the usual 224), of which the middle is taken.

  Args:
    source: of the images.
    indices: which ones.
    size: side of what is taken, pixels.
    batch: how many at once.
    rows: of every batch that are read here; None for all.

  Yields:
    `images` uint8 [rows, size, size, 3], `labels` int32 [rows] and `found` bool [rows]: black, -1
    and false where an image is damaged or there is none.
  """
  nothing = np.zeros((size, size, 3), np.uint8), -1, False

  def read(index):
    try:
      item = source[int(index)] if index >= 0 else None
    except DamagedImage:
      item = None
    if item is None:
      return nothing
    return center_crop(item["image"], size, size * 8 // 7), item["label"], True

  filled = np.full((-(-len(indices) // batch), batch), -1)
  filled.flat[:len(indices)] = indices
  with ThreadPoolExecutor() as threads:
    for chosen in filled if rows is None else filled[:, rows]:
      images, labels, found = zip(*threads.map(read, chosen))
      yield dict(images=np.stack(images), labels=np.array(labels, np.int32), found=np.array(found))


class Evaluation:
  """Every `config.evals.every` steps and after the last, a k-NN accuracy and a picture.

  `knn_top1` and `knn_top5` are those of the weighted k-NN of the teacher's CLS feature, with a
  fixed choice of at most `knn_images` training images as the bank and all held-out ones as queries.
  `pictures/step_*.png` has held-out images beside the PCA of their patch features.
  """

  def __init__(self, config, workdir: epath.Path, mesh: Mesh, bank: Source, held_out: Source,
               done: int | None = None, prefix: str = ""):
    """Args:
      config: of the run.
      workdir: its folder.
      mesh: of the devices.
      bank, held_out: images.
      done: the step whose evaluation is known already, from before a restart.
      prefix: of the metrics' names, and of the folder below `pictures`.
    """
    self._prefix = prefix
    self._steps, self._evals, self._done = config.train.steps, config.evals, done
    bank = labelled(bank)
    self._folder, self._bank, self._held_out = workdir / "pictures" / prefix, bank, held_out
    self._labelled = bank.labels is not None and held_out.labels is not None
    if not self._labelled:
      without = "images" if bank.labels is None else "held-out images"
      log.info("no k-NN evaluation: the %s have no labels", without)
    shards = data_shards(mesh)
    self._mesh, self._batch = mesh, -(-BATCH // shards) * shards
    # Of every batch, a process reads what its devices take.
    self._rows = np.arange(self._batch).reshape(shards, -1)[local_shards(mesh)].ravel()
    self._pictures = min(config.evals.pictures, len(held_out), self._batch)
    self._tokens = _make_tokens(config, mesh)

  def __call__(self, step: int, state: TrainState, metrics: dict[str, float]):
    if step == self._done or (step % self._evals.every and step != self._steps):
      return
    backbone = state.teacher["backbone"]
    if self._labelled:
      accuracy = self.knn(lambda images: self.cls(backbone, images))
      metrics |= {f"{self._prefix}knn_{name}": value for name, value in accuracy.items()}
    self._draw(backbone, self._folder / picture_name(step))

  def close(self):
    pass

  def cls(self, backbone: Params, images: np.ndarray) -> np.ndarray:
    """The CLS features of a batch, float32 [batch, D], from this process's share of its images."""
    return jax.device_get(self._tokens(backbone, place_batch(images, self._mesh), "cls"))

  def knn(self, features: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """The k-NN accuracies top1 and top5, shares of 1, of any features of the held-out images.

    Args:
      features: of a batch, float32 [batch, D], from this process's share of its images, uint8
        [rows, S, S, 3]; the only process has all of them.
    """

    def extract(source, indices):  # of the images that have a label and can be read
      indices = [i for i in indices if source.labels[i] >= 0]
      rows, labels = [], []
      for batch in read_images(source, indices, self._evals.image_size, self._batch, self._rows):
        rows.append(features(batch["images"]))
        labels.append(multihost_utils.process_allgather(
          place_batch(batch["labels"], self._mesh), tiled=True))
      if not any((found >= 0).any() for found in labels):
        raise ValueError("no image that has a label can be read")
      rows, labels = np.concatenate(rows), np.concatenate(labels)
      return rows[labels >= 0], labels[labels >= 0]

    count = min(self._evals.knn_images, len(self._bank))
    chosen = np.sort(np.random.default_rng(0).choice(len(self._bank), count, replace=False))
    bank = extract(self._bank, chosen)
    queries = extract(self._held_out, range(len(self._held_out)))
    k = min(self._evals.knn_k, len(bank[0]))
    return knn_accuracy(*bank, *queries, k=k)[k]

  def _draw(self, backbone: Params, path: epath.Path):
    # Evenly spread, for neighbours in a source are often alike.
    chosen = np.arange(self._pictures) * len(self._held_out) // max(self._pictures, 1)
    for batch in read_images(self._held_out, chosen, self._evals.picture_size, self._batch):
      mine = place_batch(batch["images"][self._rows], self._mesh)
      patches = jax.device_get(self._tokens(backbone, mine, "patches", self._pictures))
      side = round(patches.shape[1] ** 0.5)
      found = np.flatnonzero(batch["found"])
      if jax.process_index() == 0 and len(found):
        patches = patches[found].reshape(len(found), side, side, -1)
        pca.save(path, pca.pca_picture(batch["images"][found], patches))


def make_forward(config, mesh: Mesh):
  """`forward(backbone, images)`: from images uint8 [B, S, S, 3], spread over the data shards, to
  the float32 tokens `cls` [B, D] and `patches` [B, N, D], spread alike."""
  graphs, shapes = abstract_modules(config)
  layout = param_specs(mesh, shapes["backbone"]) if mesh.size > 1 else None
  dtype = jnp.dtype(config.train.dtype)
  crops = config.crops

  def forward(backbone: Params, images: jax.Array) -> dict[str, jax.Array]:
    images = normalise(images[:, None], crops.mean, crops.std, dtype)
    out, _ = forward_backbone(graphs["backbone"], backbone, layout, dtype, images)
    return {name: out[name].astype(jnp.float32) for name in ("cls", "patches")}

  if not layout:
    return forward
  return on_shards(forward, mesh, (jax.tree.map(local_spec, layout), P(DATA_AXES)), P(DATA_AXES))


def _make_tokens(config, mesh: Mesh):
  """The jitted `tokens(backbone, images, name, count=None)`: from images uint8 [B, S, S, 3] to the
  float32 tokens `name`, cls or patches, of the first `count` images (None: of all)."""
  forward = make_forward(config, mesh)

  def tokens(backbone: Params, images: jax.Array, name: str, count: int | None = None):
    return forward(backbone, images)[name][:count]

  return jax.jit(tokens, static_argnames=("name", "count"), out_shardings=NamedSharding(mesh, P()))
