"""dino.txt for use: images, their patches and captions in one space."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.models.vit import check_images
from dinov3_jax.text.backbone import Backbone
from dinov3_jax.text.encoding import make_encode
from dinov3_jax.text.evaluation import in_batches
from dinov3_jax.text.networks import Params
from dinov3_jax.text.tokenizer import Tokenizer
from dinov3_jax.train.sharding import data_shards, place_batch
from dinov3_jax.weights import checksums

BATCH = 64  # captions at once, about


class DinoText:
  """A frozen backbone with its vision head and text tower; `dinov3_jax.load_text` makes one.

  `encode_image(x)["global"] @ encode_text(texts)["global"].T` says how well captions fit images,
  and with `patches` in place of `global` how well they fit each patch.

  Attributes:
    preprocess: what images must go through.
    tokenizer: what captions go through.
    patch_size: side of a patch, pixels.
    shards: data shards of the mesh, which share the images of a call.
    logit_scale: the factor of the similarities in training, whose softmax is a probability.
  """

  def __init__(self, config: ConfigDict, backbone: Backbone, params: Params,
               mesh: Mesh | None = None):
    """Args:
      config: with the sections `vision_head`, `text`, `images` and `train` and the number
        `embedding`.
      backbone: the frozen one.
      params: the trained parameters, see `networks.abstract_modules`.
      mesh: of the devices on which both lie; None: the first one alone.
    """
    self.config, self.backbone, self.params, self.mesh = config, backbone, params, mesh
    self.patch_size = backbone.patch
    self.preprocess = Preprocess(backbone.mean, backbone.std, config.images.size)
    self.tokenizer = Tokenizer()
    self._encode_images, self._encode_texts = make_encode(config, backbone.settings, mesh)
    self.shards = data_shards(mesh) if mesh is not None else 1

  @property
  def logit_scale(self) -> float:
    return float(jnp.exp(self.params["logit_scale"][0]))

  @functools.cached_property
  def digest(self) -> str:
    """Tells this model from others: of every bit of its parameters, the backbone's included."""
    own = checksums.of_arrays(self.params)[0]
    return checksums.of_json(dict(backbone=self.backbone.digest, params=own))

  def encode_image(self, images: jax.Array | np.ndarray) -> dict[str, jax.Array]:
    """Features of images, float32 and of unit length.

    Args:
      images: float [B, H, W, 3], as `preprocess` makes them; H and W multiples of the patch size.
        On a mesh whose data shards do not divide B, zeros are computed beside them.

    Returns:
      `global` [B, E], and `patches` [B, N, E/2], N patches in rows.

    Raises:
      ValueError: images of another size, shape or dtype.
    """
    images = jnp.asarray(images)
    check_images(images)
    height, width = images.shape[1:3]
    if height % self.patch_size or width % self.patch_size:
      raise ValueError(f"images of {height}x{width} are not a whole number of patches of "
                       f"{self.patch_size}: resize them to a multiple")
    missing = -len(images) % self.shards
    images = jnp.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
    found = self._encode_images(self.backbone.params, self.params, self._placed(images))
    return {name: x[:len(x) - missing] for name, x in found.items()}

  def encode_text(self, texts: str | Sequence[str]) -> dict[str, np.ndarray]:
    """Features of captions, float32 and of unit length.

    Args:
      texts: one caption or several; of one that is longer than the text tower's context, what is
        too much is cut off.

    Returns:
      `global` [B, E], and `patches` [B, E/2], to be compared with those of images.

    Raises:
      ValueError: what is no text, or no caption at all.
    """
    ids = self.tokenizer(texts, self.config.text.context)
    if not len(ids):
      raise ValueError("there are no captions")
    batch = -(-min(BATCH, len(ids)) // self.shards) * self.shards

    def encode(rows):
      found = self._encode_texts(self.params, self._placed(rows))
      return np.concatenate([found["global"], found["patches"]], axis=-1)

    both = in_batches(encode, ids, batch)
    width = self.config.embedding
    return {"global": both[:, :width], "patches": both[:, width:]}

  def _placed(self, rows):
    return rows if self.mesh is None else place_batch(rows, self.mesh)
