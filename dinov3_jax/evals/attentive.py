"""The attentive probe of video classification, and its training for a whole grid at once.

Frames pass the backbone one by one. The patches of a clip are projected, get sine and cosine
codes of their place, go through self-attention blocks with a rotary embedding of time and space,
and are pooled by one learned query (paper 6.1.6, D.6). The blocks are those of V-JEPA 2's
classifier: pre-norm, exact GELU, and a cross-attention without an output projection, to whose
result the query is added.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dinov3_jax.evals import probe_training
from dinov3_jax.evals.probe_grid import along, gathered, one_by_one, spread

RATES = tuple(m * 10.0**e for e in (-4, -3) for m in (1, 2, 5))  # paper D.6
DECAYS = (1e-3, 1e-2, 1e-1)
EPSILON = 1e-5  # of the norms
THETA = 10.0  # of the rotary embedding, in patches and frames (Heo et al. 2024)
WAVELENGTH = 10000.0  # the longest one of the additive codes
SCORES = 2**28  # entries of the attention of all heads that stand in memory at once
Params = dict


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a probe. The paper gives `width` and `blocks`; the others are V-JEPA 2's.

  Attributes:
    width: of its tokens.
    heads: of an attention.
    blocks: of self-attention, before the one of cross-attention.
    ratio: of the hidden width of an MLP to `width`.
  """

  width: int = 1024
  heads: int = 16
  blocks: int = 4
  ratio: int = 4

  def __post_init__(self):
    if self.width % (2 * self.heads) or self.width // self.heads < 6:
      raise ValueError(f"{self.heads} heads do not fit a probe of width {self.width}: each needs "
                       "an even width of 6 or more, for time, height and breadth")


def init(dims: int, classes: int, shape: Shape = Shape(), seed: int = 0) -> Params:
  """The parameters of a probe: matrices and the query from a normal distribution of deviation
  0.02, cut off at two deviations; other vectors 0, scales 1.

  `frequencies` [3, heads, d / 2] of the rotary embedding are not trained: a third of each head
  turns by time, the others by directions in the frame, which are drawn for each head.

  Args:
    dims: D of the patches.
    classes: of the output.
  """
  keys = iter(jax.random.split(jax.random.key(seed), 32))
  width, hidden = shape.width, shape.width * shape.ratio

  def linear(inputs, outputs, *stack):
    weight = 0.02 * jax.random.truncated_normal(next(keys), -2, 2, (*stack, inputs, outputs))
    return dict(weight=weight, bias=jnp.zeros((*stack, outputs)))

  def norm(*stack):
    return dict(scale=jnp.ones((*stack, width)), bias=jnp.zeros((*stack, width)))

  def mlp(*stack):
    return dict(norm2=norm(*stack), fc1=linear(width, hidden, *stack),
                fc2=linear(hidden, width, *stack))

  return dict(
    input=linear(dims, width),
    blocks=dict(norm1=norm(shape.blocks), qkv=linear(width, 3 * width, shape.blocks),
                proj=linear(width, width, shape.blocks), **mlp(shape.blocks)),
    cross=dict(norm1=norm(), q=linear(width, width), kv=linear(width, 2 * width), **mlp()),
    query=0.02 * jax.random.truncated_normal(next(keys), -2, 2, (1, width)),
    output=linear(width, classes),
    frequencies=jnp.asarray(frequencies(shape, seed)))


def frequencies(shape: Shape, seed: int) -> np.ndarray:
  """Radians a frame, a row and a column, float32 [3, heads, d / 2], d = width / heads."""
  pairs = shape.width // shape.heads // 2
  spatial = 2 * (pairs // 3)
  fall = lambda count: THETA ** -(np.arange(count) / max(count, 1))
  result = np.zeros((3, shape.heads, pairs), np.float32)
  result[0, :, spatial:] = fall(pairs - spatial)
  angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, (shape.heads, 1))
  angle = angle + np.pi / 2 * np.repeat([0, 1], spatial // 2)  # two directions, at right angles
  size = np.tile(fall(spatial // 2), 2)
  result[1, :, :spatial], result[2, :, :spatial] = size * np.sin(angle), size * np.cos(angle)
  return result


def places(times: jax.Array, rows: int, columns: int) -> jax.Array:
  """Time, row and column of each patch, each from 0 to 1: float32 [T rows columns, 3].

  Args:
    times: of the frames [T], from 0 to 1.
  """
  centres = lambda count: (jnp.arange(count) + 0.5) / count
  grid = jnp.meshgrid(times, centres(rows), centres(columns), indexing="ij")
  return jnp.stack(grid, -1).reshape(-1, 3).astype(jnp.float32)


def codes(where: jax.Array, width: int) -> jax.Array:
  """Sines and cosines of coordinates [N, 3], a third of `width` each; zeros in what is left over.
  """
  waves = width // 6
  angles = where[..., None] / WAVELENGTH ** (jnp.arange(waves) / waves)
  result = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).reshape(len(where), -1)
  return jnp.pad(result, ((0, 0), (0, width - result.shape[1])))


def pool(params: Params, x: jax.Array, heads: int, angles: jax.Array | None = None) -> jax.Array:
  """The query after all blocks, [1, width], for tokens [N, width].

  Args:
    params: as from `init`.
    x: tokens.
    heads: of an attention.
    angles: of the rotary embedding [N, heads, d / 2]; None: no such embedding.
  """
  def split(x, count):
    return [part.reshape(len(part), heads, -1) for part in jnp.split(x, count, axis=-1)]

  def block(x, own):
    q, k, v = split(_linear(_norm(x, own["norm1"]), own["qkv"]), 3)
    if angles is not None:
      q, k = _rotate(q, angles), _rotate(k, angles)
    x = x + _linear(_attend(q, k, v), own["proj"])
    return _mlp(x, own), None

  x, _ = jax.lax.scan(jax.checkpoint(block), x, params["blocks"])
  own = params["cross"]
  query = params["query"]
  k, v = split(_linear(_norm(x, own["norm1"]), own["kv"]), 2)
  return _mlp(query + _attend(*split(_linear(query, own["q"]), 1), k, v), own)


def logits(params: Params, patches: jax.Array, times: jax.Array, heads: int) -> jax.Array:
  """float32 [B, classes] of clips.

  Args:
    params: as from `init`.
    patches: [B, T, h, w, D].
    times: of the frames [B, T], from 0 to 1.
    heads: of an attention.
  """
  _, frames, rows, columns, dims = patches.shape
  count, width = frames * rows * columns, params["query"].shape[-1]

  @jax.checkpoint
  def clip(inputs):
    x, times = inputs
    where = places(times, rows, columns) * jnp.array([frames, rows, columns])
    x = _linear(x.reshape(count, dims).astype(jnp.float32), params["input"]) + codes(where, width)
    angles = jnp.einsum("na,ahp->nhp", where, jax.lax.stop_gradient(params["frequencies"]))
    return _linear(pool(params, x, heads, angles)[0], params["output"])

  together = max(1, SCORES // (heads * count**2))
  return jax.lax.map(clip, (patches, times), batch_size=min(together, len(patches)))


@dataclasses.dataclass
class Probes:
  """A grid of G probes.

  Attributes:
    params: as from `init`, each with a first axis of G.
    heads: of an attention.
    rates, decays: [G].
    losses: [steps, G].
  """

  params: Params
  heads: int
  rates: np.ndarray
  decays: np.ndarray
  losses: np.ndarray

  def probabilities(self, patches, times, probe: int | None = None) -> np.ndarray:
    """Of the classes, float32 [G, B, classes], or [B, classes] of one probe."""
    if probe is not None:
      params = jax.tree.map(lambda x: x[probe], self.params)
      return np.asarray(_probabilities(params, jnp.asarray(patches), jnp.asarray(times),
                                       heads=self.heads))
    return np.stack([self.probabilities(patches, times, i) for i in range(len(self.rates))])


def train(batches: Iterable[tuple], steps: int, classes: int, rates: Sequence[float] = RATES,
          decays: Sequence[float] = DECAYS, *, shape: Shape = Shape(), seed: int = 0,
          mesh: jax.sharding.Mesh | None = None,
          kept: probe_training.Kept | None = None) -> Probes:
  """Trains a probe for every rate and decay on the same clips.

  AdamW, the rate falls to 0 along a cosine from the first step on, as in V-JEPA 2; the paper says
  neither. All probes begin alike.

  Args:
    batches: (patches [B, T, h, w, D], times [B, T], labels [B]) of each step, from `kept.step` on;
      those beyond `steps` are left.
    steps: how many.
    classes: how many; labels lie below it.
    rates, decays: the grid.
    shape: of a probe.
    seed: of its parameters.
    mesh: devices that share the probes; None: the first one alone.
    kept: where the training is kept, to go on from there; None: nowhere.

  Raises:
    ValueError: fewer batches than steps, or no probe whose loss is finite.
  """
  grid = np.array([(rate, decay) for rate in rates for decay in decays], np.float32)
  factors = optax.cosine_decay_schedule(1.0, steps)
  placed, place = spread(grid, mesh)

  def begin(batch):
    params = jax.tree.map(lambda x: place(np.repeat(np.asarray(x)[None], len(placed), 0)),
                          init(batch[0].shape[-1], classes, shape, seed))
    return params, _ADAM.init(params)

  def step(i, state, batch):
    state, value = _step(state, *map(jnp.asarray, batch), place(placed[:, 0] * factors(i)),
                         place(placed[:, 1]), heads=shape.heads, mesh=mesh)
    return state, value[None]

  state, losses = probe_training.run(batches, steps, begin, step, kept)
  losses = losses[:, :len(grid)]
  if not np.isfinite(losses[-1]).any():
    raise ValueError("all probes diverge: their losses are not finite; are the features?")
  return Probes(gathered(state[0], len(grid)), shape.heads, grid[:, 0], grid[:, 1], losses)


_ADAM = optax.scale_by_adam()


@partial(jax.jit, static_argnames=("heads", "mesh"), donate_argnums=0)
def _step(state, patches, times, labels, rates, decays, *, heads, mesh):
  params, moments = state

  def loss(own, patches, times, labels):
    found = logits(own, patches, times, heads)
    return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

  value, gradient = one_by_one(jax.value_and_grad(loss), mesh)(params, patches, times, labels)
  updates, moments = _ADAM.update(gradient, moments)
  changed = jax.tree.map(
      lambda p, u: p - along(rates, p) * (u + along(decays, p) * p), params, updates)
  return (dict(changed, frequencies=params["frequencies"]), moments), value


@partial(jax.jit, static_argnames="heads")
def _probabilities(params, patches, times, *, heads):
  return jax.nn.softmax(logits(params, patches, times, heads))


def _linear(x, own):
  return x @ own["weight"] + own["bias"]


def _norm(x, own):
  x = x - x.mean(-1, keepdims=True)
  x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)
  return x * own["scale"] + own["bias"]


def _mlp(x, own):
  hidden = jax.nn.gelu(_linear(_norm(x, own["norm2"]), own["fc1"]), approximate=False)
  return x + _linear(hidden, own["fc2"])


def _attend(q, k, v):
  """[N, heads, d] each -> [N, heads d]."""
  return jax.nn.dot_product_attention(q[None], k[None], v[None])[0].reshape(len(q), -1)


def _rotate(x, angles):
  """Turns the pairs (i, i + d / 2) of [N, heads, d] by their angles."""
  first, second = jnp.split(x, 2, axis=-1)
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
