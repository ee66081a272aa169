"""The dense probe against a recorded one, and the grid against single probes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dinov3_jax.evals import dense_probe as probe
from dinov3_jax.evals import depth
from dinov3_jax.evals.sliding import resize


@pytest.fixture(scope="module")
def record(golden):
  arrays = golden("evals/linear_head")
  features = arrays["features"].transpose(0, 1, 3, 4, 2)  # channels last
  return arrays | dict(features=features)


@pytest.fixture(scope="module")
def trained(record):
  return probe.train(zip(record["features"], record["labels"]), record["lrs"], 4, rates=(1.0,),
                     decays=(1e-3,), dropout=0, weight=record["W0"].T, offset=record["b0"])


def test_training(record, trained):
  np.testing.assert_allclose(trained.losses[:, 0], record["losses"], rtol=1e-5)
  np.testing.assert_allclose(trained.mean, record["running_mean"], rtol=2e-3)
  np.testing.assert_allclose(trained.variance, record["running_var"], rtol=2e-3)
  for ours, theirs in (("scale", "bn_weight"), ("bias", "bn_bias"), ("offset", "conv_bias")):
    np.testing.assert_allclose(trained.params[ours][0], record[theirs], atol=2e-5)
  np.testing.assert_allclose(trained.params["weight"][0].T, record["conv_weight"], atol=2e-5)


def test_evaluation(record, trained):
  logits = resize(trained.outputs(record["features"][0], 0), *record["labels"].shape[2:])
  np.testing.assert_allclose(logits.transpose(0, 3, 1, 2), record["eval_logits"],
                             atol=3e-3)  # recorded in float16


def test_a_grid_is_its_probes(record):
  batches = lambda: zip(record["features"], record["labels"])
  grid = probe.train(batches(), record["lrs"], 4, rates=(0.5, 1.0), decays=(0.0, 0.1), seed=3)
  assert grid.losses.shape == (6, 4)
  for i in (0, 3):
    alone = probe.train(batches(), record["lrs"], 4, rates=grid.rates[i:i + 1],
                        decays=grid.decays[i:i + 1], seed=3)
    np.testing.assert_allclose(alone.params["weight"][0], grid.params["weight"][i], atol=1e-6)


def test_devices_that_share_the_grid_agree_with_one(record):
  mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
  run = lambda mesh: probe.train(zip(record["features"], record["labels"]), record["lrs"], 4,
                                 clip=1.0, mesh=mesh)
  alone, shared = run(None), run(mesh)
  assert shared.losses.shape == (6, 6)  # six probes on four devices
  np.testing.assert_allclose(shared.losses, alone.losses, rtol=1e-5)
  x = record["features"][0]
  np.testing.assert_allclose(shared.outputs(x, 5), alone.outputs(x, 5), atol=1e-4)


def test_ignored_pixels_count_in_the_mean():
  logits, labels = jnp.zeros((1, 2, 2, 4)), jnp.array([[[0, 255], [255, 255]]])
  assert probe.cross_entropy(logits, labels) == pytest.approx(np.log(4) / 4)


def test_depth_is_learned():
  """Depth is a linear function of the features; the probe finds it."""
  rng = np.random.default_rng(0)
  features = rng.standard_normal((60, 4, 4, 4, 8)).astype(np.float32)
  truth = 4 + features[..., 0]
  def loss(outputs, target, step):
    return depth.sig_loss(depth.from_bins(outputs, 0.001, 10), target, target > 0, step >= 10)
  trained = probe.train(zip(features, truth), np.full(60, 0.05), 32, loss, (1.0,), (0.0,),
                        betas=np.full(60, 0.9), clip=35.0)
  predicted = depth.from_bins(trained.outputs(features[0], 0), 0.001, 10)
  assert np.sqrt(np.square(predicted - truth[0]).mean()) < 0.6 * truth.std()


def test_clipping_bounds_the_gradient():
  x, y = np.ones((1, 1, 2, 2, 1), np.float32), np.zeros((1, 1, 2, 2), int)
  x[..., 0, 0] = -1
  run = lambda clip: probe.train(zip(x, y), [1.0], 2, rates=(1.0,), decays=(0.0,), dropout=0,
                                 clip=clip, weight=np.ones((1, 2)))
  # Adam's first step does not depend on the gradient's size: only one below its epsilon shows.
  assert np.abs(run(None).params["offset"]).max() == pytest.approx(1, abs=1e-4)
  assert np.abs(run(1e-9).params["offset"]).max() < 0.2


def test_bad_input(record):
  with pytest.raises(ValueError, match="6 batches for 9 steps"):
    probe.train(zip(record["features"], record["labels"]), np.ones(9), 4)
  with pytest.raises(ValueError, match="all probes diverge"):
    probe.train(zip(record["features"] * np.nan, record["labels"]), record["lrs"], 4)


def test_gradient_of_the_first_step(record):
  x = jnp.asarray(record["features"][0])
  z = probe._standardize(x, x.mean((0, 1, 2)), x.var((0, 1, 2)))
  params = dict(scale=jnp.ones(6), bias=jnp.zeros(6), weight=jnp.asarray(record["W0"].T),
                offset=jnp.asarray(record["b0"]))
  np.testing.assert_allclose(probe._apply(params, z).transpose(0, 3, 1, 2),
                             record["train_logits_0"], atol=2e-5)
  loss = lambda p: probe.cross_entropy(probe._apply(p, z), record["labels"][0])
  gradient = jax.grad(loss)(params)
  np.testing.assert_allclose(gradient["weight"].T, record["grad_conv_0"][..., 0, 0], atol=2e-6)
  np.testing.assert_allclose(gradient["scale"], record["grad_bn_weight_0"], atol=2e-6)
