"""A batch in parts that go through the networks one after the other, to need less memory.

The images of each data shard are cut into `train.micro_batches` parts. What each term of the loss
sees of a batch then:

- Sinkhorn balances the samples of the whole batch at once. The teacher's bottlenecks, a few hundred
  numbers a row, are kept from all parts before the student sees the first one.
- DINO, iBOT and the Gram loss within images are means over images, so the parts' gradients have the
  mean that the whole batch has.
- KoLeo compares groups of `koleo.group` neighbouring images, which must divide a part: the groups
  are those of the whole batch.
- Masks are made for each part on its own, each with an exact and constant number of patches. It is
  `n` times that of a batch with as few images, which rounding makes slightly less than that of the
  whole.
- Gram matrices over a batch (`gram.image_level=False`) reach no further than a part.
- A frozen teacher makes its targets of the whole batch before the student sees the first part.
- Stochastic depth draws its subset of rows, and RoPE its rescaling, for each part anew.

So an update is that of one batch with the same masks wherever nothing is drawn at random.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dinov3_jax.train.objective import Objective


def split(batch: dict[str, jax.Array], parts: int) -> dict[str, jax.Array]:
  """The parts of a batch, stacked.

  Args:
    batch: of S data shards, with S * `parts` rows of `mask_indices`; each shard's images lie
      together, and in them each part's.
    parts: how many.

  Returns:
    Arrays [parts, rows / parts, ...]; a part has 1 / `parts` of the images of every shard.
  """
  shards = len(batch["mask_indices"]) // parts

  def cut(x):
    x = x.reshape(shards, parts, -1, *x.shape[1:])
    return jnp.moveaxis(x, 1, 0).reshape(parts, -1, *x.shape[3:])

  return jax.tree.map(cut, batch)


def accumulated(objective: Objective, parts: int) -> Callable:
  """`gradients(student, teacher, gram_teacher, batch, values, key) -> ((total, metrics), grads)`.

  Means over the parts, whose activations are in memory one after the other. On a mesh the shards'
  gradients are averaged after every part.

  Args:
    objective: of one part.
    parts: into how many a batch is cut.
  """
  if parts == 1:
    return jax.value_and_grad(objective, has_aux=True)

  def gradients(student, teacher, gram_teacher, batch, values, key):
    batches = split(batch, parts)
    heads = objective.heads(teacher)
    _, rows = jax.lax.scan(lambda _, part: (None, objective.look(teacher, heads, part)), None,
                           batches)
    scales, usage = objective.balance(heads, rows, values["teacher_temp"], parts)
    constants = {name: u for name, (u, _) in scales.items()}
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(parts))

    def of_part(part):
      batch, rows, v, key = part
      of_student = lambda student: objective.losses(
        student, heads, gram_teacher, batch, values, key, rows,
        {name: (u, v[name]) for name, u in constants.items()})
      return jax.value_and_grad(of_student, has_aux=True)(student)

    inputs = batches, rows, {name: v for name, (_, v) in scales.items()}, keys
    first = jax.tree.map(lambda x: x[0], inputs)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_part, first))
    add = lambda sums, part: (jax.tree.map(jnp.add, sums, of_part(part)), None)
    sums, _ = jax.lax.scan(add, nothing, inputs)
    (total, metrics), grads = jax.tree.map(lambda x: x / parts, sums)
    return (total, metrics | usage), grads

  return gradients
