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
    raise ValueError(f"KoLeo groups of {group} do not divide {rows} rows, a device's images: "
                     "set koleo.group to a divisor of their number")
  if not 1 <= topk < group:
    raise ValueError(f"KoLeo needs 1 <= topk < group, got topk={topk} and group={group}.")
  x = features.astype(jnp.float32)
  x = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps**2))
  x = x.reshape(*x.shape[:-2], rows // group, group, x.shape[-1])
  fixed = jax.lax.stop_gradient(x)
  similarity = jnp.einsum("...id,...jd->...ij", fixed, fixed, precision="highest")
  similarity = jnp.where(jnp.eye(group, dtype=bool), -jnp.inf, similarity)
  total = 0.0
  for _ in range(topk):
    # One-hot products in place of a top-k and a gather: both stay on their shard, and so does the
    # transpose, which is no scatter.
    nearest = jax.nn.one_hot(similarity.argmax(axis=-1), group)
    neighbour = jnp.einsum("...ij,...jd->...id", nearest, x, precision="highest")
    distance = jnp.linalg.norm(x - neighbour + eps, axis=-1)
    total += jnp.mean(jnp.log(distance + eps))
    similarity = jnp.where(nearest > 0, -jnp.inf, similarity)
  return -total / topk
