"""How the features of a fixed set of images fare while training runs; no labels are needed."""

import hashlib
import io
import logging
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.data.durable import write_bytes
from dinov3_jax.data.sources import Source
from dinov3_jax.evals.rankme import rankme
from dinov3_jax.models.variants import stride
from dinov3_jax.train.evaluation import BATCH, make_forward, read_images
from dinov3_jax.train.sharding import batch_sharding, data_shards, local_shards, place_batch
from dinov3_jax.train.state import TrainState

log = logging.getLogger(__name__)

FILE = "health_reference.npz"
GRID = 16  # patches a side at most: Gram matrices grow with the fourth power


class Health:
  """At every step that logs, how the EMA teacher's CLS and patch features have changed.

  `rankme` is `evals.rankme` of the CLS features. `gram_drift` is the root mean square difference,
  over all pairs of patches of an image and all images, between the cosine of two patches and what
  it was at the reference: the square root of what the Gram loss (paper, section 4.2) would be
  against it.

  The reference is the teacher after step `health.reference_at`, or after the first one that is seen
  later. It stays in the run's folder, so that restarts keep it.
  """

  def __init__(self, config, workdir: epath.PathLike, mesh: Mesh, source: Source, start: int = 0,
               done: int | None = None):
    """Args:
      config: of the run; the images are evenly spread over the source, in the size of its first
        global crops, or of `GRID` patches a side if that is less.
      workdir: its folder.
      mesh: of the devices.
      source: images, best of those that are held out.
      start: steps done before; a reference from later steps does not count.
      done: the step whose figures are written already, from before a restart.
    """
    self._steps, self._every, self._done = config.train.steps, config.log_every, done
    self._first, self._start = config.health.reference_at, start
    self._path, self._mesh, self._source = epath.Path(workdir) / FILE, mesh, source
    patch, shards = stride(config.model), data_shards(mesh)
    self._size = min(config.crops.global_sizes[0] // patch, GRID) * patch
    self._batch = -(-min(BATCH, config.health.images) // shards) * shards
    count = min(config.health.images, len(source))
    self._chosen = np.arange(count) * len(source) // max(count, 1)
    self._batches = self._reference = None
    forward, spread, whole = make_forward(config, mesh), batch_sharding(mesh), NamedSharding(
      mesh, P())

    def look(backbone, images):
      tokens = forward(backbone, images)
      patches = tokens["patches"]
      patches *= jax.lax.rsqrt(jnp.maximum(jnp.sum(patches**2, -1, keepdims=True), 1e-24))
      grams = jnp.einsum("bnd,bmd->bnm", patches, patches)
      return tokens["cls"], grams.astype(jnp.float16)  # exact to 5e-4, at half the memory

    difference = lambda x, y: jnp.mean((x.astype(jnp.float32) - y.astype(jnp.float32))**2, (1, 2))
    self._look = jax.jit(look, out_shardings=(whole, spread))
    self._difference = jax.jit(difference, out_shardings=whole)

  def __call__(self, step: int, state: TrainState, metrics: dict[str, float]):
    logs = step % self._every == 0 or step == self._steps
    refers = step == self._first and step != self._done
    if not refers and (not logs or step in (0, self._done)):
      return
    if self._batches is None:
      self._read()
    if not self._found.any():
      return
    looked = [self._look(state.teacher["backbone"], images) for images in self._batches]
    cls, grams = zip(*looked)
    if refers or (self._reference is None and step > self._first):
      self._refer(step, grams)
    if step:
      metrics["rankme"] = rankme(np.concatenate(jax.device_get(cls))[self._found])
      if self._reference is not None:
        squares = jax.device_get([self._difference(*pair) for pair in zip(grams, self._reference)])
        metrics["gram_drift"] = float(np.sqrt(np.concatenate(squares)[self._found].mean()))

  def close(self):
    pass

  def _read(self):
    """Takes the images to the devices, and the reference from the run's folder."""
    shards = data_shards(self._mesh)
    rows = np.arange(self._batch).reshape(shards, -1)[local_shards(self._mesh)].ravel()
    batches, found, digest = [], [], hashlib.sha256(str((self._size, GRID)).encode())
    for batch in read_images(self._source, self._chosen, self._size, self._batch):
      digest.update(batch["images"].tobytes())
      batches.append(place_batch(batch["images"][rows], self._mesh))
      found.append(batch["found"])
    self._batches, self._digest = batches, digest.hexdigest()
    self._found = np.concatenate(found) if found else np.zeros(0, bool)
    if not self._found.any():
      log.warning("no health figures: none of the %d images can be read", len(self._chosen))
    self._reference = self._stored(rows)

  def _stored(self, rows: np.ndarray) -> list[jax.Array] | None:
    """The reference of an earlier process, None if it is not of this run's past and images."""
    try:
      with np.load(io.BytesIO(self._path.read_bytes())) as arrays:
        step, digest, grams = int(arrays["step"]), str(arrays["digest"]), arrays["grams"]
    except FileNotFoundError:
      return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      log.warning("%s cannot be read (%s): gram_drift begins anew", self._path, error)
      return None
    if digest != self._digest:
      log.warning("%s is of other images: gram_drift begins anew", self._path)
    elif self._first <= step <= self._start:
      # Another number of data shards may have had batches of another size.
      grams = grams.reshape(-1, self._batch, *grams.shape[2:])
      return [place_batch(part[rows], self._mesh) for part in grams]
    return None

  def _refer(self, step: int, grams: tuple[jax.Array, ...]):
    """Makes these the reference, and keeps them."""
    if step != self._first:
      log.info("gram_drift is from step %d: there is no reference of step %d", step, self._first)
    self._reference = list(grams)
    gathered = [multihost_utils.process_allgather(part, tiled=True) for part in grams]
    if jax.process_index() == 0:
      content = io.BytesIO()
      np.savez_compressed(content, step=step, digest=self._digest, grams=np.stack(gathered))
      write_bytes(self._path, content.getvalue())
