import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from dinov3_jax.losses.usage import cls_patch_cosine, prototype_usage


def entropy(p):
  return -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


def by_hand(rows, kernel, temperature):
  z = np.float64(rows) @ np.float64(kernel) / temperature
  q = np.exp(z - z.max(1, keepdims=True))
  q /= q.sum(1, keepdims=True)
  return entropy(q).mean() / np.log(z.shape[1]), np.exp(entropy(q.mean(0))) / z.shape[1]


@pytest.fixture
def inputs():
  rng = np.random.default_rng(0)
  rows, kernel = rng.standard_normal((24, 8)), rng.standard_normal((8, 36))
  return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), kernel.astype(
    np.float32)


@pytest.mark.parametrize("chunks, shards", [(1, 1), (3, 1), (3, 2), (9, 4)])
def test_as_by_hand_whatever_the_chunks(inputs, chunks, shards):
  np.testing.assert_allclose(prototype_usage(*inputs, 0.1, chunks, shards),
                             by_hand(*inputs, 0.1), rtol=1e-4)


@pytest.mark.parametrize("chunks", [1, 4])
def test_the_same_on_several_devices(inputs, chunks):
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  usage = lambda rows, kernel: prototype_usage(rows, kernel, 0.1, chunks, axes=("data",))
  spread = jax.shard_map(usage, mesh=mesh, in_specs=(P("data"), P()), out_specs=P(),
                         check_vma=False)
  np.testing.assert_allclose(jax.jit(spread)(*inputs), by_hand(*inputs, 0.1), rtol=1e-4)


def test_collapse_and_its_opposites():
  eye = 100 * jnp.eye(8)
  same = jnp.tile(eye[:1], (16, 1))
  sharp, collapsed = prototype_usage(same, jnp.eye(8), 0.1)
  np.testing.assert_allclose([sharp, collapsed], [0, 1 / 8], atol=1e-6)
  np.testing.assert_allclose(prototype_usage(eye, jnp.eye(8), 0.1), [0, 1], atol=1e-6)
  np.testing.assert_allclose(prototype_usage(jnp.zeros((4, 8)), jnp.eye(8), 0.1), [1, 1],
                             rtol=1e-6)
  np.testing.assert_allclose(prototype_usage(jnp.ones((4, 3)), jnp.ones((3, 1)), 0.1), [0, 1],
                             atol=1e-6)  # one prototype


def test_chunks_that_do_not_divide_are_an_error(inputs):
  with pytest.raises(ValueError, match="36 prototypes do not divide into 5 chunks"):
    prototype_usage(*inputs, 0.1, chunks=5)


def test_cosine_of_cls_and_patches():
  rng = np.random.default_rng(0)
  cls, patches = rng.standard_normal((3, 5)), rng.standard_normal((3, 7, 5))
  expected = np.mean([[c @ p / np.linalg.norm(c) / np.linalg.norm(p) for p in ps]
                      for c, ps in zip(cls, patches)])
  np.testing.assert_allclose(cls_patch_cosine(jnp.asarray(cls), jnp.asarray(patches)), expected,
                             rtol=1e-5)
  assert cls_patch_cosine(jnp.zeros((1, 5)), jnp.ones((1, 7, 5))) == 0


def test_no_gradient_flows():
  rng = np.random.default_rng(0)
  x, kernel = rng.standard_normal((6, 4)), rng.standard_normal((4, 9))
  total = lambda x: sum(prototype_usage(x, kernel, 0.1)) + cls_patch_cosine(x, x[:, None])
  np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(x, jnp.float32)), 0)
