"""The grid of linear probes against recorded heads, on one device and several."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from dinov3_jax.evals import linear


@pytest.fixture(scope="module")
def record(golden):
  return golden("evals/linear_probe")


@pytest.fixture(scope="module")
def heads(record):
  return linear.train(inputs(record), record["labels"], record["lrs"][0].tolist(), (0.0,),
                      num_classes=6, order=record["batches"], weights=record["W0"])


def inputs(record):
  """The reference's own input: CLS and the mean of the patches."""
  return np.concatenate([record["cls"], record["patches"].mean(1)], axis=1)


def test_schedule(record):
  expected = record["lrs"] / record["lrs"][0]
  np.testing.assert_allclose(linear.cosine(20)[:, None] * np.ones(3), expected, atol=1e-6)


def test_training(record, heads):
  np.testing.assert_allclose(heads.losses, record["losses"], rtol=1e-5)
  np.testing.assert_allclose(heads.weights, record["final_weights"], atol=2e-6)
  np.testing.assert_allclose(heads.biases, record["final_bias"], atol=2e-6)
  np.testing.assert_allclose(linear.accuracies(heads, inputs(record), record["labels"]),
                             record["train_accuracy"], atol=1e-6)


def test_classes_of_another_set(record, heads):
  logits = heads.logits(inputs(record), 2)[:, record["class_mapping"]]
  np.testing.assert_allclose(logits, record["mapped_logits"], atol=1e-5)


def test_heads_do_not_know_of_each_other_nor_of_devices(record):
  x, y = inputs(record), record["labels"]
  mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,))
  several = linear.train(x, y, (0.01, 0.1, 1.0), (0.0, 0.1), steps=70, batch=32, mesh=mesh)
  assert several.weights.shape == (6, 6, 16) and several.losses.shape == (70, 6)
  for i in (1, 4):
    alone = linear.train(x, y, several.rates[i:i + 1], several.decays[i:i + 1], steps=70, batch=32)
    np.testing.assert_allclose(several.weights[i], alone.weights[0], atol=1e-5)
  assert np.square(several.weights[5]).sum() < np.square(several.weights[4]).sum()  # the decay


def test_every_image_once_an_epoch():
  order = linear._shuffled(10, 5, 4, seed=0).ravel()
  assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
  assert (order[:10] != order[10:]).any()


def test_bad_input():
  x = np.ones((4, 2), np.float32)
  with pytest.raises(ValueError, match="features \\[N, D\\]"):
    linear.train(x, [0])
  with pytest.raises(ValueError, match="between 0 and 1, not between 0 and 2"):
    linear.train(x, [0, 1, 2, 0], num_classes=2)
  with pytest.raises(ValueError, match="not all finite"):
    linear.train(x * np.nan, [0, 1, 1, 0])
