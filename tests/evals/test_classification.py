"""Figures of merit against those recorded from the reference, and by hand."""

import numpy as np
import pytest

from dinov3_jax.evals import classification as c


@pytest.fixture(scope="module")
def record(recorded):
  return recorded("classification_metrics")


@pytest.mark.parametrize("k", [1, 5])
def test_one_label(record, k):
  logits, labels, single = np.array(record["logits"]), record["labels"], record["single"]
  for name, function in (("mean_accuracy", c.accuracy),
                         ("mean_per_class_accuracy", c.accuracy_per_class)):
    assert 100 * function(logits, labels, k) == pytest.approx(single[name][f"top-{k}"], abs=1e-4)


def test_f1(record):
  single = record["single"]
  assert 100 * c.f1_per_class(record["logits"], record["labels"]) == pytest.approx(
      single["mean_per_class_multiclass_f1"]["top-1"], abs=1e-4)
  assert 100 * c.accuracy(record["logits"], record["labels"]) == pytest.approx(
      single["mean_multiclass_f1"]["top-1"], abs=1e-4)  # micro F1 is the accuracy


@pytest.mark.parametrize("k", [1, 5])
def test_any_of_several_labels(record, k):
  share, count = c.accuracy_any(record["logits"], record["any_match_targets"], k)
  assert count == record["n_counted"]
  assert 100 * share == pytest.approx(record["any_match"][f"top-{k}"], abs=1e-4)


def test_many_labels(record):
  scores, labels = np.array(record["multilabel_probs"]), np.array(record["multilabel_targets"])
  expected = {name: value["top-1"] for name, value in record["multilabel"].items()}
  mean = lambda function: 100 * np.mean([function(s, t) for s, t in zip(scores.T, labels.T)])
  assert mean(c.average_precision_voc2007) == pytest.approx(expected["map_voc2007"], abs=1e-4)
  assert mean(c.average_precision) == pytest.approx(
      expected["macro_multilabel_average_precision"], abs=1e-4)
  micro, macro = c.multilabel_f1(scores, labels)
  assert 100 * micro == pytest.approx(expected["mean_multilabel_f1"], abs=1e-4)
  assert 100 * macro == pytest.approx(expected["mean_per_class_multilabel_f1"], abs=1e-4)


def test_equal_logits_earn_nothing_above_chance():
  assert c.accuracy(np.zeros((4, 4)), [0, 1, 2, 3]) == 0.25


def test_confusion_has_labels_in_rows():
  assert c.confusion([1, 1, 0], [0, 1, 0], 2).tolist() == [[1, 1], [0, 1]]


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="between 0 and 2, not between 0 and 3"):
    c.accuracy(np.zeros((2, 3)), [0, 3])
  with pytest.raises(ValueError, match=r"logits must be \[N, C\]"):
    c.accuracy(np.zeros((2, 3)), [0])
  with pytest.raises(ValueError, match="no image has a label"):
    c.accuracy_any(np.zeros((1, 3)), [[-1]])
  with pytest.raises(ValueError, match="1 logits, but 2 lists"):
    c.accuracy_any(np.zeros((1, 3)), [[1], [2]])
