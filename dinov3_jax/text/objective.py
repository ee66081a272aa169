"""Images and captions on one batch: contrastive loss, Gram loss, and their total (section 5.3)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from dinov3_jax.losses.contrastive import contrastive_loss
from dinov3_jax.losses.gram import gram_loss
from dinov3_jax.models import partition
from dinov3_jax.text.networks import Params
from dinov3_jax.text.tower import last_token
from dinov3_jax.train.objective import merge


def unit(x: jax.Array) -> jax.Array:
  """Features [..., D] of length one, float32."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def make_encoders(graphs: dict[str, nnx.GraphDef], dtype: jnp.dtype, layout: dict | None = None,
                  remat: str = "none") -> tuple[Callable, Callable]:
  """The two sides of dino.txt as functions of the trained parameters.

  Args:
    graphs: of the networks, see `networks.abstract_modules`.
    dtype: of the computation.
    layout: the parameters' `PartitionSpec`s, under `jax.shard_map`; None on one device.
    remat: see `stack.run_blocks`.

  Returns:
    `of_images(params, tokens, **options)`: what the vision head makes of a backbone's tokens, see
    `VisionHead`; and `of_texts(params, ids)`: the captions' features [B, E]. Neither is normalised.
  """

  def network(params, name):
    return merge(graphs[name], params[name], layout and layout[name], dtype)

  def blocks(name):
    return dict(remat=remat, layout=layout and layout[name]["blocks"])

  def of_images(params: Params, tokens: dict[str, jax.Array], **options) -> dict[str, jax.Array]:
    return network(params, "vision_head")(tokens, **options, **blocks("vision_head"))

  def of_texts(params: Params, ids: jax.Array) -> jax.Array:
    tokens = network(params, "text_tower")(ids, **blocks("text_tower"))
    return network(params, "text_head")(last_token(tokens, ids))

  return of_images, of_texts


def make_halves(config, graphs: dict[str, nnx.GraphDef], layout: dict | None = None
                ) -> tuple[Callable, Callable]:
  """The objective before and after all pairs are compared; for `make_objective`'s arguments.

  Returns:
    `encode(params, batch, key)`: `images` and `texts` [B, E], of unit length and in the
    computation's dtype, and with `gram.weight` above 0 the `gram_loss`. And
    `compare(params, images, texts) -> (contrastive loss, metrics)`.
  """
  dtype = jnp.dtype(config.train.dtype)
  of_images, of_texts = make_encoders(graphs, dtype, layout, config.train.remat)
  whole = lambda params, name: partition.whole(params[name], layout and layout[name], jnp.float32)

  def encode(params: Params, batch: dict, key: jax.Array) -> dict[str, jax.Array]:
    features = batch["features"]
    seen = of_images(params, features, key=key)
    told = of_texts(params, batch["tokens"])
    result = dict(images=unit(seen["image"]).astype(dtype), texts=unit(told).astype(dtype))
    if config.gram.weight:
      result["gram_loss"] = gram_loss(seen["patches"], features["patches"],
                                      normalized=config.gram.normalized)
    return result

  def compare(params: Params, images: jax.Array, texts: jax.Array) -> tuple[jax.Array, dict]:
    scale = jnp.exp(whole(params, "logit_scale"))[0]
    axes = () if layout is None else partition.several()
    loss = contrastive_loss(images, texts, scale, axes)
    return loss, dict(contrastive_loss=loss, logit_scale=scale)

  return encode, compare


def make_objective(config, graphs: dict[str, nnx.GraphDef], layout: dict | None = None) -> Callable:
  """`objective(params, batch, key) -> (total, metrics)`.

  A batch has `tokens`, the captions' ids [B, T], and `features`, what the frozen backbone makes of
  the images: `cls` [B, D], `storage` [B, R, D] and `patches` [B, N, D]. `key` draws the vision
  head's stochastic depth.

  The Gram loss, if `gram.weight` is not 0, keeps the cosine similarities between an image's patches
  those that the backbone's have. Parameters are cast to the computation's dtype, and losses are
  float32.

  With a `layout`, the parameters' `PartitionSpec`s, it runs under `jax.shard_map` over
  `partition.DATA_AXES`, on one shard's part of the batch; the losses of all are the mean of the
  shards', and the gradients are already averaged.
  """
  encode, compare = make_halves(config, graphs, layout)

  def objective(params: Params, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    seen = encode(params, batch, key)
    total, metrics = compare(params, seen["images"], seen["texts"])
    if "gram_loss" in seen:
      metrics["gram_loss"] = seen["gram_loss"]
      total += config.gram.weight * metrics["gram_loss"]
    return total, metrics

  return objective
