"""The attentive probe: the recorded one, its codes of places, and its training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dinov3_jax.evals import attentive
from dinov3_jax.evals.attentive import Shape
from tests.evals.conftest import GOLDEN

SMALL = Shape(width=24, heads=2, blocks=1, ratio=2)


@pytest.fixture(scope="module")
def recorded_probe():
  """The recording, and its parameters under the names of `init`."""
  z = np.load(GOLDEN / "attentive_probe.npz")
  get = lambda name: np.asarray(z[f"p/{name}"], np.float32)
  linear = lambda name: dict(weight=get(f"{name}.weight").T, bias=get(f"{name}.bias"))
  norm = lambda name: dict(scale=get(f"{name}.weight"), bias=get(f"{name}.bias"))
  rest = lambda name: dict(norm1=norm(f"{name}.norm1"), norm2=norm(f"{name}.norm2"),
                           fc1=linear(f"{name}.mlp.fc1"), fc2=linear(f"{name}.mlp.fc2"))
  blocks = [rest(name) | dict(qkv=linear(f"{name}.attn.qkv"), proj=linear(f"{name}.attn.proj"))
            for name in (f"pooler.blocks.{i}" for i in range(int(z["depth"]) - 1))]
  cross = "pooler.cross_attention_block"
  params = dict(
    blocks=jax.tree.map(lambda *x: np.stack(x), *blocks),
    cross=rest(cross) | dict(q=linear(f"{cross}.xattn.q"), kv=linear(f"{cross}.xattn.kv")),
    query=get("pooler.query_tokens")[0], output=linear("linear"))
  return z, params


def test_recorded_probe(recorded_probe):
  z, params = recorded_probe
  x = jnp.asarray(z["x"], jnp.float32)
  pooled = jax.vmap(lambda x: attentive.pool(params, x, int(z["heads"])))(x)
  np.testing.assert_allclose(pooled, z["pooled"], atol=2e-5)
  logits = pooled[:, 0] @ params["output"]["weight"] + params["output"]["bias"]
  np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(z["logits"]), atol=2e-5)


def test_attention_sees_the_distance_in_time_and_space():
  """Scores of rotated tokens stay as they are when all of them move alike."""
  frequencies = attentive.frequencies(SMALL, 0)
  where = attentive.places(jnp.array([0.0, 0.3, 1.0]), 2, 3) * jnp.array([3, 2, 3])
  q, k = jax.random.normal(jax.random.key(0), (2, len(where), 2, 12))

  def scores(where):
    angles = jnp.einsum("na,ahp->nhp", where, frequencies)
    return jnp.einsum("nhd,mhd->hnm", attentive._rotate(q, angles), attentive._rotate(k, angles))

  np.testing.assert_allclose(scores(where + jnp.array([2.0, 1, 0.5])), scores(where), atol=1e-4)
  assert abs(scores(where * 2) - scores(where)).max() > 0.1
  # The heads look into different directions of the frame, and alike into time.
  assert (frequencies[1:, 0] != frequencies[1:, 1]).any()
  np.testing.assert_array_equal(frequencies[0, 0], frequencies[0, 1])


def test_codes_tell_all_places_apart():
  where = attentive.places(jnp.linspace(0, 1, 4), 2, 3)
  assert where.shape == (24, 3) and where.min() >= 0 and where.max() <= 1
  codes = attentive.codes(where * jnp.array([4, 2, 3]), 26)
  assert codes.shape == (24, 26) and len(np.unique(np.round(codes, 5), axis=0)) == 24
  assert not codes[:, 24:].any()


def clips(count, seed):
  """Two classes that differ in the order of frames alone: a bright patch early or late."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 2, count)
  x = 0.1 * rng.standard_normal((count, 4, 1, 2, 6)).astype(np.float32)
  x[np.arange(count), np.where(labels, 3, 0), 0, rng.integers(0, 2, count)] += 1
  return x, np.tile(np.linspace(0, 1, 4, dtype=np.float32), (count, 1)), labels


def test_the_order_of_frames_is_learned():
  probes = attentive.train((clips(16, i) for i in range(60)), 60, 2, (1e-2,), (1e-3, 1e-2),
                           shape=SMALL)
  x, times, labels = clips(64, 99)
  found = probes.probabilities(x, times)
  assert found.shape == (2, 64, 2)
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
  assert (found.argmax(-1) == labels).mean(1).min() > 0.9
  turned = probes.probabilities(x[:, ::-1], times, 0).argmax(-1)
  assert (turned != labels).mean() > 0.9


def test_devices_that_share_the_grid_agree_with_one():
  mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
  run = lambda mesh: attentive.train([clips(16, i) for i in range(3)], 3, 2, (1e-2, 1e-4), (0.1,),
                                     shape=SMALL, mesh=mesh)
  alone, shared = run(None), run(mesh)
  np.testing.assert_allclose(shared.losses, alone.losses, rtol=1e-5)
  np.testing.assert_array_equal(shared.params["frequencies"], alone.params["frequencies"])


def test_bad_input():
  with pytest.raises(ValueError, match="3 heads do not fit a probe of width 64"):
    Shape(width=64, heads=3)
  run = lambda batches, steps: attentive.train(batches, steps, 2, (1e-3,), (0.1, 0.2), shape=SMALL)
  with pytest.raises(ValueError, match="there are 1 batches for 2 steps"):
    run([clips(16, 0)], 2)
  x, times, labels = clips(16, 0)
  with pytest.raises(ValueError, match="all probes diverge"):
    run([(x * np.nan, times, labels)], 1)
