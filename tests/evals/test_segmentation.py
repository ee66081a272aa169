"""Areas of classes and their figures against recorded ones."""

import numpy as np
import pytest

from dinov3_jax.evals import segmentation


@pytest.mark.parametrize("name", ["plain", "reduce_zero_label"])
def test_recorded(golden, recorded, name):
  maps, record = golden("evals/segmentation_maps"), recorded("segmentation")
  total = []
  for i in range(3):
    labels = maps[f"gt_{i}"]
    if name == "reduce_zero_label":
      labels = segmentation.reduce_zero_label(labels)
    total.append(segmentation.areas(maps[f"pred_{i}"], labels, record["num_classes"]))
  np.testing.assert_array_equal(total, maps[f"hist_{name}"])
  figures = segmentation.figures(np.sum(total, 0))
  assert figures.keys() == record["metrics"][name].keys()
  for key, value in figures.items():
    assert 100 * value == pytest.approx(record["metrics"][name][key], abs=1e-4)
  per_class = np.array(record["metrics"][f"{name}_iou_per_class"], float)  # null is NaN
  np.testing.assert_allclose(100 * segmentation.iou_per_class(np.sum(total, 0)), per_class,
                             atol=1e-4)
  by_image = np.mean([segmentation.figures(x)["mIoU"] for x in total])
  assert 100 * by_image == pytest.approx(record["metrics"][f"{name}_mean_of_image_miou"], abs=1e-4)


def test_reduce_zero_label(recorded):
  before, after = recorded("segmentation")["metrics"]["reduce_zero_label_of"]
  assert segmentation.reduce_zero_label(np.array(before, np.uint8)).tolist() == after


def test_bad_input():
  with pytest.raises(ValueError, match="label 9 is none of 3"):
    segmentation.areas(np.zeros((1, 2), int), np.array([[9, 255]]), 3)
  with pytest.raises(ValueError, match=r"\(1, 2\), the labels are \(2, 1\)"):
    segmentation.areas(np.zeros((1, 2)), np.zeros((2, 1)), 3)
