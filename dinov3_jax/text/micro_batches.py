"""A batch of pairs in parts that go through the networks one after the other, to need less memory.

The contrastive loss compares all pairs with each other, so it is no mean over parts. Its gradient
reaches the networks through the features alone (GradCache, Gao et al. 2021, arXiv:2101.06983):

1. every part is encoded, and its features are all that is kept;
2. the loss of all features is differentiated by them;
3. every part is encoded again, and these gradients are taken back through it.

The update is that of the whole batch, but for the vision head's stochastic depth, which draws its
subset of rows for each part. On a mesh parameters are gathered, and gradients averaged, for every
part.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def accumulated(encode: Callable, compare: Callable, gram_weight: float, parts: int) -> Callable:
  """`gradients(params, batch, key) -> ((total, metrics), grads)`, as `jax.value_and_grad` has them.

  Args:
    encode, compare: see `objective.make_halves`.
    gram_weight: of the Gram loss in the total.
    parts: into how many a batch is cut, more than one.
  """

  def gradients(params, batch, key):
    batches = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(parts))
    _, seen = jax.lax.scan(lambda _, part: (None, encode(params, *part)), None, (batches, keys))
    whole = lambda x: x.reshape(-1, *x.shape[2:])
    of_features = jax.value_and_grad(
      lambda scale, images, texts: compare(params | dict(logit_scale=scale), images, texts),
      argnums=(0, 1, 2), has_aux=True)
    (total, metrics), (d_scale, *d_features) = of_features(
      params["logit_scale"], whole(seen["images"]), whole(seen["texts"]))
    pulled = {name: d.reshape(seen[name].shape) for name, d in zip(("images", "texts"), d_features)}
    if "gram_loss" in seen:
      metrics |= dict(gram_loss=jnp.mean(seen["gram_loss"]))
      total += gram_weight * metrics["gram_loss"]
      pulled["gram_loss"] = jnp.full_like(seen["gram_loss"], gram_weight / parts)

    def add(sums, part):
      inputs, gradient = part
      _, back = jax.vjp(lambda params: encode(params, *inputs), params)
      return jax.tree.map(jnp.add, sums, back(gradient)[0]), None

    nothing = jax.tree.map(jnp.zeros_like, params)
    grads, _ = jax.lax.scan(add, nothing, ((batches, keys), pulled))
    grads["logit_scale"] += d_scale
    return (total, metrics), grads

  return gradients
