"""The KoLeo regulariser: features spread evenly over the sphere (DINOv2, section 4)."""

import jax
import jax.numpy as jnp
from jax import Array


def koleo_loss(features: Array, group: int, topk: int = 1, eps: float = 1e-8) -> Array:
  """Kozachenko-Leonenko estimate of the (negative) differential entropy of the features.

    L = -mean_i log(|x_i - x_nn(i) + eps| + eps),  x = features / |features|

  where nn(i) is the most similar other row of i's group; with `topk` > 1, the mean runs over that
  many nearest rows. Gradients flow through both ends of a pair. The reference takes the images of
  one GPU as a group; here it is explicit, and rows are only ever compared within theirs.

  Args:
    features: [..., N, D], any float dtype; consecutive rows form a group. Crops that should not
      meet (the two of an image) stand on a leading axis.
    group: rows a group, divides N.
    topk: neighbours of each row.
    eps: keeps norms and logarithms finite, for duplicates too.

  Returns:
    Scalar, float32.
  """
  rows = features.shape[-2]
  if rows % group:
    raise ValueError(f"KoLeo groups of {group} do not divide {rows} rows; change koleo.group.")
  if not 1 <= topk < group:
    raise ValueError(f"KoLeo needs 1 <= topk < group, got topk={topk} and group={group}.")
  x = features.astype(jnp.float32)
  x = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps**2))
  x = x.reshape(*x.shape[:-2], rows // group, group, x.shape[-1])
  fixed = jax.lax.stop_gradient(x)
  similarity = jnp.einsum("...id,...jd->...ij", fixed, fixed, precision="highest")
  similarity = jnp.where(jnp.eye(group, dtype=bool), -jnp.inf, similarity)
  _, nearest = jax.lax.top_k(similarity, topk)
  # A product with one-hot rows, not a gather: its transpose is no scatter, and it stays on a shard.
  nearest = jax.nn.one_hot(nearest, group)
  neighbours = jnp.einsum("...itj,...jd->...itd", nearest, x, precision="highest")
  distance = jnp.linalg.norm(x[..., None, :] - neighbours + eps, axis=-1)
  return -jnp.mean(jnp.log(distance + eps))
