"""Logistic regression against scikit-learn's recorded optimum."""

import numpy as np
import pytest
import torch

from dinov3_jax.evals import classification, logistic


@pytest.fixture(scope="module")
def record(golden):
  return golden("evals/logreg")


def test_split(record):
  fitting, validation = logistic.split(record["train_labels"])
  assert sorted(fitting) == sorted(record["fit_indices"])
  assert sorted(validation) == sorted(record["val_indices"])


@pytest.mark.parametrize("count, seed", [(1, 0), (2, 1), (100, 0), (1000, 3)])
def test_the_shuffle_is_pytorchs(count, seed):
  expected = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
  np.testing.assert_array_equal(logistic._randperm(count, seed), expected.numpy())


def test_a_class_of_one_image_is_trained_on():
  fitting, validation = logistic.split([0, 0, 0, 1])
  assert 3 in fitting and len(validation) == 1


def test_optimum(record):
  model = logistic.fit(record["train"], record["train_labels"], 1.0)
  np.testing.assert_allclose(model.coefficients, record["C1_coef"], atol=2e-5)
  np.testing.assert_allclose(model.intercepts, record["C1_intercept"], atol=2e-5)


def test_choice(record):
  best, accuracies, model = logistic.choose(
      record["train"], record["train_labels"], record["fit_indices"], record["val_indices"],
      record["C"].tolist())
  np.testing.assert_allclose(accuracies, record["val_accuracy"], atol=1e-4)
  assert best == pytest.approx(float(record["best_C"]))
  np.testing.assert_allclose(model.coefficients, record["final_coef"], atol=2e-5)
  np.testing.assert_allclose(model.probabilities(record["test"]), record["test_probs"], atol=2e-5)
  found = model.predict(record["test"])
  assert 100 * (found == record["test_labels"]).mean() == pytest.approx(
      float(record["test_top1"]), abs=1e-4)


def test_two_classes_have_the_objective_of_a_single_row():
  """C sum log(1 + exp(-y z)) + |w|^2 / 2, by its gradient at what `fit` finds."""
  rng = np.random.default_rng(0)
  x, labels, C = rng.standard_normal((40, 5)), rng.integers(0, 2, 40), 0.3
  model = logistic.fit(x, labels, C)
  w, b = np.diff(model.coefficients, axis=0)[0], np.diff(model.intercepts)[0]
  pulled = 1 / (1 + np.exp(-(x @ w + b))) - labels
  np.testing.assert_allclose(C * pulled @ x + w, 0, atol=1e-8)
  np.testing.assert_allclose(pulled.sum(), 0, atol=1e-8)
  binary = logistic.fit_binary(x, labels, C)
  np.testing.assert_allclose(binary.probabilities(x), model.probabilities(x), atol=1e-8)


def test_a_choice_needs_images_that_are_left_out():
  fitting, validation = logistic.split([0, 1, 2])
  with pytest.raises(ValueError, match="there are none: at least one class needs two images"):
    logistic.choose(np.eye(3), [0, 1, 2], fitting, validation)


def test_several_labels(recorded):
  record = recorded("logreg_multilabel")
  features, labels = np.array(record["features"]), np.array(record["labels"])
  count = record["n_train"]
  scores = np.stack([
    logistic.fit_binary(features[:count], own[:count], record["C"]).probabilities(
        features[count:])[:, 1] for own in labels.T], axis=1)
  np.testing.assert_allclose(scores, record["test_probs"], atol=2e-5)
  precision = [classification.average_precision_voc2007(s, t)
               for s, t in zip(scores.T, labels[count:].T)]
  assert 100 * np.mean(precision) == pytest.approx(record["map_voc2007"], abs=1e-4)


def test_bad_input():
  with pytest.raises(ValueError, match="two classes or more"):
    logistic.fit(np.ones((3, 2)), [1, 1, 1], 1.0)
  with pytest.raises(ValueError, match="finite features"):
    logistic.fit(np.full((2, 2), np.nan), [0, 1], 1.0)
  with pytest.raises(ValueError, match="C must be positive"):
    logistic.fit(np.ones((2, 2)), [0, 1], 0.0)
  with pytest.raises(ValueError, match="images of both"):
    logistic.fit_binary(np.ones((2, 2)), [1, 1], 1.0)
