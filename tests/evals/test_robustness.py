"""Corruption errors and cut logits against recorded figures."""

import numpy as np
import pytest

from dinov3_jax.evals import robustness


def by_level(accuracy):
  return {name: dict(enumerate(values, 1)) for name, values in accuracy.items()}


def test_mean_corruption_error(recorded):
  record = recorded("imagenet_c")
  accuracy = by_level(record["accuracy"])
  assert robustness.mean_corruption_error(accuracy) == pytest.approx(record["mce_15"], abs=1e-6)
  assert robustness.mean_corruption_error(accuracy, extra=True) == pytest.approx(
      record["mce_19"], abs=1e-6)
  partial = {name: {int(level): value for level, value in levels.items()}
             for name, levels in record["partial"]["accuracy"].items()}
  assert robustness.mean_corruption_error(partial) == pytest.approx(
      record["partial"]["mce"], abs=1e-6)


def test_alexnet_against_itself(recorded):
  record = recorded("imagenet_c")
  ours = {name: [1 - error for error in errors] for name, errors in record["alexnet_error"].items()}
  assert robustness.mean_corruption_error(by_level(ours)) == pytest.approx(100, abs=1e-9)
  assert set(record["extra_four"]) == set(robustness.EXTRA)


def test_unknown_corruptions_and_levels():
  with pytest.raises(ValueError, match="no corruption rain"):
    robustness.mean_corruption_error({"rain": {1: 0.5}})
  with pytest.raises(ValueError, match=r"fog has levels \[0, 1\]"):
    robustness.mean_corruption_error({"fog": {0: 0.5, 1: 0.5}})
  with pytest.raises(ValueError, match="none of the 15"):
    robustness.mean_corruption_error({"spatter": {1: 0.5}})


def test_subsets(recorded, golden):
  record, arrays = recorded("imagenet_subsets"), golden("evals/imagenet_subsets_logits")
  labels = arrays["imagenet_a_label"]
  found = robustness.predict_within(arrays["logits"], record["imagenet_a"])
  assert 100 * (found == labels).mean() == pytest.approx(
      float(arrays["imagenet_a_top1_restricted"]), abs=1e-9)
  folders, classes = arrays["objectnet_folder"].tolist(), record["objectnet_folder_to_imagenet"]
  for restrict, name in ((True, "restricted"), (False, "all_classes")):
    share, count = robustness.accuracy_of_folders(arrays["logits"], folders, classes, restrict)
    assert count == arrays["objectnet_counted"]
    assert 100 * share == pytest.approx(float(arrays[f"objectnet_top1_{name}"]), abs=1e-9)
  with pytest.raises(ValueError, match="none of the images"):
    robustness.accuracy_of_folders(np.zeros((1, 3)), ["nowhere"], {"here": [1]})
