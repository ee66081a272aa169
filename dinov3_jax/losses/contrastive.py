"""The contrastive loss between images and their captions (CLIP; paper, section 5.3)."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def contrastive_loss(images: jax.Array, texts: jax.Array, scale: jax.Array,
                     axes: tuple[str, ...] = ()) -> jax.Array:
  """The mean of the cross-entropies from images to texts and from texts to images.

  With B pairs and s the scale, each row of the logits `s * images @ texts.T` and each of their
  transpose is a classification whose right answer is the row's own pair:

    loss = 1/B sum_i (lse_j(s x_i.y_j) + lse_j(s y_i.x_j) - 2 s x_i.y_i) / 2

  Under `jax.shard_map` over `axes` the features are this shard's part of the batch. Those of all
  shards are gathered once, forward; a shard computes the logits of its own rows and columns, and
  backward needs no more than the rows' log-sum-exps of the others.

  Args:
    images, texts: [b, D], normalised. Products are summed in float32.
    scale: of the logits, a float32 scalar.
    axes: mesh axes over which the batch is spread; () on one device.

  Returns:
    A float32 scalar: the mean over this shard's b pairs, of which the loss is the mean over shards.
    Gradients, too, are those whose mean over shards is the gradient of the loss.
  """
  return _forward(images, texts, scale, axes)[0]


def _gather(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  return jax.lax.all_gather(x, axes, tiled=True) if axes else x


def _similarities(rows: jax.Array, columns: jax.Array) -> jax.Array:
  return jnp.einsum("id,jd->ij", rows, columns, preferred_element_type=jnp.float32)


def _forward(images, texts, scale, axes):
  all_images, all_texts = _gather(images, axes), _gather(texts, axes)
  of_images = jax.nn.logsumexp(scale * _similarities(images, all_texts), axis=1)
  of_texts = jax.nn.logsumexp(scale * _similarities(texts, all_images), axis=1)
  own = jnp.sum(images.astype(jnp.float32) * texts.astype(jnp.float32), axis=1)
  loss = jnp.mean(of_images + of_texts - 2 * scale * own) / 2
  return loss, (images, texts, all_images, all_texts, scale, of_images, of_texts, own)


def _backward(axes, residuals, g):
  images, texts, all_images, all_texts, scale, of_images, of_texts, own = residuals
  factor = g / (2 * len(images))

  def side(rows, columns, lse, lse_of_columns, partners):
    """The gradient of these rows, and of the scale through their own cross-entropy."""
    similarities = _similarities(rows, columns)
    answers = jnp.exp(scale * similarities - lse[:, None])
    weights = answers + jnp.exp(scale * similarities - lse_of_columns[None])
    pulled = jnp.einsum("ij,jd->id", weights.astype(columns.dtype), columns,
                        preferred_element_type=jnp.float32)
    gradient = factor * scale * (pulled - 2 * partners.astype(jnp.float32))
    return gradient.astype(rows.dtype), jnp.sum(answers * similarities)

  d_images, from_images = side(images, all_texts, of_images, _gather(of_texts, axes), texts)
  d_texts, from_texts = side(texts, all_images, of_texts, _gather(of_images, axes), images)
  d_scale = factor * (from_images + from_texts - 2 * jnp.sum(own))
  return d_images, d_texts, d_scale.astype(scale.dtype)


contrastive_loss.defvjp(_forward, _backward)
