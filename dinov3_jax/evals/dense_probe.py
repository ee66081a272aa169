"""Linear probes of patch features: batch norm and a 1 x 1 convolution, a whole grid at once."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dinov3_jax.evals import probe_training
from dinov3_jax.evals.probe_grid import along, gathered, one_by_one, spread
from dinov3_jax.evals.sliding import resize

EPSILON = 1e-5  # of the batch norm
MOMENTUM = 0.1  # of its running statistics, PyTorch's
DROPOUT = 0.1  # of whole channels, in training
RATES = (1e-4, 3e-4, 1e-3)  # paper D.1: learning rates and decays of AdamW
DECAYS = (1e-4, 1e-3)
# Maps (outputs [B, h, w, K], targets [B, ...], step) to a scalar.
Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass
class Probe:
  """A grid of G probes. The running statistics are those of the features, alike for all.

  Attributes:
    params: `scale` and `bias` [G, D] of the batch norm, `weight` [G, D, K] and `offset` [G, K].
    mean, variance: running statistics, [D].
    rates, decays: [G].
    losses: [steps, G].
  """

  params: dict[str, jax.Array]
  mean: jax.Array
  variance: jax.Array
  rates: np.ndarray
  decays: np.ndarray
  losses: np.ndarray

  def outputs(self, features, head: int) -> jax.Array:
    """float32 [B, h, w, K] of features [B, h, w, D], by one of the probes."""
    return _apply(jax.tree.map(lambda x: x[head], self.params),
                  _standardize(jnp.asarray(features, jnp.float32), self.mean, self.variance))


def cross_entropy(outputs: jax.Array, labels: jax.Array, step: jax.Array = 0) -> jax.Array:
  """The segmentation loss of the reference.

  Logits are resized to the labels, bilinear. Pixels of 255 have no loss, but they count in the
  mean: it is over all pixels.

  Args:
    outputs: logits [B, h, w, C].
    labels: integers [B, H, W].
  """
  logits = resize(outputs, *labels.shape[1:])
  counted = labels != 255
  own = jnp.take_along_axis(logits, jnp.where(counted, labels, 0)[..., None].astype(jnp.int32), -1)
  return ((jax.nn.logsumexp(logits, -1) - own[..., 0]) * counted).mean()


def train(batches: Iterable[tuple[np.ndarray, np.ndarray]], schedule: Sequence[float], outputs: int,
          loss: Loss = cross_entropy, rates: Sequence[float] = RATES,
          decays: Sequence[float] = DECAYS, *, betas: Sequence[float] | None = None,
          dropout: float = DROPOUT, clip: float | None = None, weight=None, offset=None,
          seed: int = 0, mesh: jax.sharding.Mesh | None = None,
          kept: probe_training.Kept | None = None) -> Probe:
  """Trains a probe for every rate and decay on the same batches, with AdamW.

  Args:
    batches: (features [B, h, w, D], targets) of each step, from `kept.step` on; those beyond the
      schedule are left.
    schedule: factors of the learning rate by step.
    outputs: K, of each patch.
    loss: of the outputs at the patches.
    rates, decays: the grid.
    betas: AdamW's beta1 by step; None: 0.9.
    dropout: the share of channels of an image that are zeroed before the batch norm.
    clip: the largest norm of a probe's gradient; None: any.
    weight, offset: [D, K] and [K] to begin with; None: N(0, 0.01) and 0.
    seed: of the weights and the dropout.
    mesh: devices that share the probes; None: the first one alone.
    kept: where the training is kept, to go on from there; None: nowhere.

  Raises:
    ValueError: fewer batches than steps, or a loss that is not finite.
  """
  grid = np.array([(rate, decay) for rate in rates for decay in decays], np.float32)
  placed, place = spread(grid, mesh)
  key = jax.random.key(seed)

  def begin(batch):
    return _start(batch[0].shape[-1], outputs, len(placed), place, weight, offset, seed)

  def step(i, state, batch):
    state, value = _step(state, *map(jnp.asarray, batch),
                         place(placed[:, 0] * np.float32(schedule[i])), place(placed[:, 1]),
                         0.9 if betas is None else betas[i], jax.random.fold_in(key, i), loss=loss,
                         dropout=dropout, clip=clip, mesh=mesh)
    return state, value[None]

  state, losses = probe_training.run(batches, len(schedule), begin, step, kept)
  losses = losses[:, :len(grid)]
  if not np.isfinite(losses).any(1).all():
    raise ValueError("all probes diverge: their losses are not finite; are the features?")
  params, _, _, *statistics = state[:5]
  mean, variance = (jnp.asarray(np.asarray(x)) for x in statistics)
  return Probe(gathered(params, len(grid)), mean, variance, grid[:, 0], grid[:, 1], losses)


def _start(dims, outputs, heads, place, weight, offset, seed):
  rng = np.random.default_rng(seed)
  weight = 0.01 * rng.standard_normal((dims, outputs)) if weight is None else weight
  offset = np.zeros(outputs) if offset is None else offset
  params = jax.tree.map(lambda x: place(np.repeat(np.float32(x)[None], heads, 0)), dict(
      scale=np.ones(dims), bias=np.zeros(dims), weight=weight, offset=offset))
  zeros = lambda: jax.tree.map(jnp.zeros_like, params)
  # Adam's beta1 may change between steps: its bias correction is 1 - the product of all so far.
  return (params, zeros(), zeros(), jnp.zeros(dims), jnp.ones(dims), jnp.int32(0), jnp.ones(()))


def _standardize(x, mean, variance):
  return (x - mean) * jax.lax.rsqrt(variance + EPSILON)


def _apply(params, x):
  """One probe on standardized features."""
  x = x * params["scale"] + params["bias"]
  return jnp.matmul(x, params["weight"], precision="float32") + params["offset"]


@partial(jax.jit, static_argnames=("loss", "dropout", "clip", "mesh"), donate_argnums=0)
def _step(state, x, targets, rates, decays, beta, key, *, loss, dropout, clip, mesh):
  params, first, second, mean, variance, step, product = state
  x = x.astype(jnp.float32)
  if dropout:
    kept = jax.random.bernoulli(key, 1 - dropout, (len(x), 1, 1, x.shape[-1]))
    x = x * kept / (1 - dropout)
  own_mean, own_variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
  count = x.size // x.shape[-1]
  z = _standardize(x, own_mean, own_variance)
  mean += MOMENTUM * (own_mean - mean)
  variance += MOMENTUM * (own_variance * count / max(count - 1, 1) - variance)

  value, gradient = one_by_one(
      jax.value_and_grad(lambda p, z, targets, step: loss(_apply(p, z), targets, step)), mesh)(
          params, z, targets, step)
  if clip is not None:
    norm = jnp.sqrt(sum(jnp.square(g).reshape(len(rates), -1).sum(1)
                        for g in jax.tree.leaves(gradient)))
    factor = jnp.minimum(clip / (norm + 1e-6), 1)
    gradient = jax.tree.map(lambda g: g * along(factor, g), gradient)
  step += 1
  product *= beta
  first = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, first, gradient)
  second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * jnp.square(g), second, gradient)
  correct = lambda m, v: (m / (1 - product)) / (jnp.sqrt(v / (1 - 0.999**step)) + 1e-8)
  params = jax.tree.map(
      lambda p, m, v: p * (1 - along(rates * decays, p)) - along(rates, p) * correct(m, v),
      params, first, second)
  return (params, first, second, mean, variance, step, product), value
