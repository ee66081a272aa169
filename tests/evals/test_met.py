"""Whitening, the k-NN classifier and GAP against recorded figures."""

import numpy as np
import pytest

from dinov3_jax.evals import met


def test_gap(recorded):
  record = recorded("gap")
  figures = met.figures(record["pred"], record["confidence"], record["target"])
  for name in ("gap", "gap_minus", "accuracy"):
    assert figures[name] == pytest.approx(record[name], abs=1e-6)


@pytest.fixture(params=[8, 16])
def whitened(request, golden):
  arrays = golden("evals/met")
  whiten = met.fit_whitening(arrays["train"], request.param)
  return request.param, arrays, *(whiten(arrays[split]) for split in ("train", "val", "test"))


def test_whitening(whitened):
  dims, arrays, train, _, test = whitened
  assert train.shape[1] == dims
  np.testing.assert_allclose(train @ test.T, arrays[f"pcaw{dims}_gram"], atol=2e-4)


def test_classifier(whitened):
  dims, arrays, train, _, test = whitened
  found, confidence = met.classify(train, arrays["train_labels"], test, k=5, tau=15)
  np.testing.assert_array_equal(found, arrays[f"d{dims}_k5t15_pred"])
  np.testing.assert_allclose(confidence, arrays[f"d{dims}_k5t15_conf"], atol=2e-4)
  figures = met.figures(found, confidence, arrays["test_labels"])
  np.testing.assert_allclose(list(figures.values()), arrays[f"d{dims}_k5t15_gap_gapminus_acc"],
                             atol=1e-6)


def test_tuning(whitened):
  dims, arrays, train, val, test = whitened
  labels = arrays["train_labels"]
  k, tau, table = met.tune(train, labels, val, arrays["val_labels"],
                           arrays["grid_K"].tolist(), arrays["grid_t"].tolist())
  clear = ~arrays[f"d{dims}_val_gap_has_ties"]
  np.testing.assert_allclose(table[clear], arrays[f"d{dims}_val_gap_table"][clear], atol=1e-6)
  best = arrays[f"d{dims}_best"]
  assert (k, tau) == (best[0], best[1])
  figures = met.figures(*met.classify(train, labels, test, k, tau), arrays["test_labels"])
  np.testing.assert_allclose(list(figures.values()), arrays[f"d{dims}_test_gap_gapminus_acc"],
                             atol=1e-6)


def test_confidences_are_probabilities():
  bank = np.eye(3)
  found, confidence = met.classify(bank, np.array([0, 1, 2]), -bank, k=3, tau=500)
  np.testing.assert_allclose(confidence, 1 / 3)  # cosines below 0 say nothing
  found, confidence = met.classify(bank, np.array([0, 1, 1]), bank, k=1, tau=500)
  assert found.tolist() == [0, 1, 1] and (confidence > 0.999).all()


def test_bad_input():
  with pytest.raises(ValueError, match="no query has a label"):
    met.gap([0], [1.0], [-1])
  with pytest.raises(ValueError, match="cannot be whitened to 4"):
    met.fit_whitening(np.ones((4, 8)), 4)
  with pytest.raises(ValueError, match="span fewer than 2"):
    met.fit_whitening(np.arange(4.0)[:, None] * [[1.0, 2.0]], 2)
