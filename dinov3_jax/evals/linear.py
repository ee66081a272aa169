"""Linear classification on frozen features: a grid of learning rates and decays at once."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.evals import probe_training
from dinov3_jax.evals.probe_grid import spread

# Paper D.7: 10 epochs of batches of 1024, SGD with momentum.
RATES = tuple(m * 10.0**e for e in (-4, -3, -2, -1, 0) for m in (1, 2, 5))
DECAYS = (0.0, 1e-5)
MOMENTUM = 0.9
BATCH = 1024
EPOCHS = 10
CHUNK = 64  # steps a compiled call; what it is given stays small on the device


@dataclasses.dataclass(frozen=True)
class Heads:
  """Linear heads, one for each rate and decay.

  Attributes:
    weights: float32 [G, C, D].
    biases: float32 [G, C].
    rates, decays: [G].
    losses: the mean cross-entropy of each batch, float32 [steps, G].
  """

  weights: np.ndarray
  biases: np.ndarray
  rates: np.ndarray
  decays: np.ndarray
  losses: np.ndarray

  def logits(self, features, head: int | None = None) -> np.ndarray:
    """float32 [G, N, C] of features [N, D]; of one head [N, C]."""
    if head is not None:
      return np.asarray(features, np.float32) @ self.weights[head].T + self.biases[head]
    return np.stack([self.logits(features, i) for i in range(len(self.weights))])


def cosine(steps: int) -> np.ndarray:
  """The factor of the learning rate by step: (1 + cos(pi i / steps)) / 2, float64 [steps]."""
  return (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


def train(features, labels, rates: Sequence[float] = RATES, decays: Sequence[float] = DECAYS, *,
          num_classes: int | None = None, steps: int | None = None, batch: int = BATCH,
          seed: int = 0, order=None, weights=None, mesh: jax.sharding.Mesh | None = None,
          kept: probe_training.Kept | None = None) -> Heads:
  """Trains a head for every rate and decay, all on the same batches.

  SGD with momentum, cosine to 0; the decay is L2's, added to the gradient, biases included, as
  PyTorch's SGD has it. Weights begin as N(0, 0.01), biases as 0, alike in every head.

  Args:
    features: [N, D].
    labels: integers [N], at least 0.
    rates: learning rates, as they are: not scaled by the size of the batch.
    decays: weight decays.
    num_classes: None takes the largest label + 1.
    steps: None makes `EPOCHS` epochs.
    batch: images of a step, cut to N.
    seed: of the first weights and the order of images.
    order: int [steps, batch], the images of each step, instead of a shuffle of every epoch.
    weights: [C, D], what every head begins with, instead of random ones.
    mesh: devices that share the heads of the grid; None: the first one alone.
    kept: where the training is kept, to go on from there; None: nowhere.

  Raises:
    ValueError: shapes that do not fit, labels out of range, features that are not finite.
  """
  features, labels = np.asarray(features), np.asarray(labels)
  if features.ndim != 2 or labels.shape != (len(features),) or not len(labels):
    raise ValueError(f"a linear probe needs features [N, D] and labels [N] with N > 0, not "
                     f"{features.shape} and {labels.shape}")
  if not np.isfinite(features).all():
    raise ValueError("the features of the linear probe are not all finite")
  num_classes = int(labels.max()) + 1 if num_classes is None else num_classes
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(f"labels must lie between 0 and {num_classes - 1}, not between "
                     f"{labels.min()} and {labels.max()}")
  grid = np.array([(rate, decay) for rate in rates for decay in decays], np.float32)
  if order is None:
    batch = min(batch, len(labels))
    steps = EPOCHS * math.ceil(len(labels) / batch) if steps is None else steps
    order = _shuffled(len(labels), steps, batch, seed)
  if weights is None:
    weights = 0.01 * np.random.default_rng(seed).standard_normal(
        (num_classes, features.shape[1]), np.float32)
  heads = len(grid)
  placed, place = spread(grid, mesh)
  w = np.tile(np.asarray(weights, np.float32).T, len(placed))
  b = np.zeros(w.shape[1], np.float32)
  across = jnp.asarray if mesh is None else partial(
      jax.device_put, device=NamedSharding(mesh, P(None, mesh.axis_names)))
  factors = cosine(len(order)).astype(np.float32)
  lr, decay = place(placed[:, 0]), place(placed[:, 1])
  starts = range(0, len(order), CHUNK)

  def step(i, state, start):
    rows = order[start:start + CHUNK]
    return _steps(state, lr, decay, features[rows], labels[rows].astype(np.int32),
                  factors[start:start + CHUNK], mesh=mesh)

  done = min(kept.step, len(starts) - 1) if kept else 0
  state, losses = probe_training.run(
      starts[done:], len(starts),
      lambda _: (across(w), place(b), across(np.zeros_like(w)), place(b)), step, kept)
  w = np.asarray(state[0]).reshape(len(w), len(placed), -1)[:, :heads].transpose(1, 2, 0)
  b = np.asarray(state[1]).reshape(len(placed), -1)[:heads]
  return Heads(np.ascontiguousarray(w), b, grid[:, 0], grid[:, 1], losses[:, :heads])


def _shuffled(count: int, steps: int, batch: int, seed: int) -> np.ndarray:
  """Every image once an epoch, in a new order each; the last batch of one goes on into the next."""
  rng = np.random.default_rng(seed)
  epochs = [rng.permutation(count) for _ in range(math.ceil(steps * batch / count))]
  return np.concatenate(epochs)[:steps * batch].reshape(steps, batch)


@partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _steps(state, rates, decays, features, labels, factors, *, mesh=None):
  """Several steps of all heads. features [steps, batch, D], labels [steps, batch].

  In the state, the classes of all heads stand side by side, so that a step is two products of
  matrices: weights [D, G C], biases [G C], and their momenta.
  """
  def some(state, rates, decays, features, labels, factors):
    heads = len(rates)
    classes = state[1].size // heads
    rates, decays = jnp.repeat(rates, classes), jnp.repeat(decays, classes)
    places = jnp.arange(classes)

    def step(state, inputs):
      w, b, mw, mb = state
      x, y, factor = inputs
      x = x.astype(jnp.float32)
      logits = (jnp.matmul(x, w, precision="float32") + b).reshape(len(x), heads, classes)
      own = jnp.take_along_axis(logits, y[:, None, None], axis=2)
      most = logits.max(2, keepdims=True)
      shares = jnp.exp(logits - most)
      total = shares.sum(2, keepdims=True)
      residual = (shares / total - (places == y[:, None, None])) / len(x)
      residual = residual.reshape(len(x), -1)
      mw = MOMENTUM * mw + jnp.matmul(x.T, residual, precision="float32") + decays * w
      mb = MOMENTUM * mb + residual.sum(0) + decays * b
      lr = factor * rates
      return (w - lr * mw, b - lr * mb, mw, mb), (jnp.log(total) + most - own).mean((0, 2))

    return jax.lax.scan(step, state, (features, labels, factors))

  if mesh is not None:
    across, all_ = P(None, mesh.axis_names), P()
    along = P(mesh.axis_names)
    places = (across, along, across, along)
    some = jax.shard_map(some, mesh=mesh, in_specs=(places, along, along, all_, all_, all_),
                         out_specs=(places, across))
  return some(state, rates, decays, features, labels, factors)


def accuracies(heads: Heads, features, labels) -> np.ndarray:
  """The top-1 accuracy of each head, [G], from 0 to 1."""
  labels = np.asarray(labels)
  return np.array([(heads.logits(features, i).argmax(1) == labels).mean()
                   for i in range(len(heads.rates))])
