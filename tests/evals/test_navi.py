"""Correspondence in 3D against recorded pairs."""

import numpy as np
import pytest

from dinov3_jax.evals import matching, navi


@pytest.fixture(scope="module")
def pairs(golden, recorded):
  arrays, record = golden("evals/navi_pairs"), recorded("navi")
  last = lambda x: np.moveaxis(x, 0, -1)
  return arrays, record, [
    [last(arrays[f"{name}_{i}"]) for name in ("feats0", "feats1", "xyz0", "xyz1")]
    for i in range(len(record["views"]))]


def test_ratio_test(pairs):
  arrays, record, inputs = pairs
  recall_3d, recall_2d, binned = [], [], []
  for i, views in enumerate(inputs):
    source, target, weight = navi.correspond(*views, record["num_corr"])
    np.testing.assert_allclose(weight, arrays[f"weight_{i}"], atol=2e-5)
    np.testing.assert_allclose(source, arrays[f"corr_xyz0_{i}"], atol=1e-6)
    np.testing.assert_allclose(target, arrays[f"corr_xyz1_{i}"], atol=1e-6)
    metres, pixels = navi.errors(source, target, arrays[f"Rt_{i}"], arrays["K"])
    np.testing.assert_allclose(metres, arrays[f"err3d_{i}"], atol=1e-6)
    np.testing.assert_allclose(pixels, arrays[f"err2d_{i}"], atol=1e-3)
    recall_3d.append([matching.recall(metres, t) for t in navi.THRESHOLDS])
    recall_2d.append([matching.recall(pixels, t) for t in (1, 2, 5)])
    binned.append(matching.recall(metres, 0.02))
  np.testing.assert_allclose(100 * np.mean(recall_3d, 0), list(record["recall_3d"].values()),
                             atol=1e-4)
  np.testing.assert_allclose(100 * np.mean(recall_2d, 0), list(record["recall_2d"].values()),
                             atol=1e-4)
  np.testing.assert_allclose(binned, record["binned_2cm"], atol=1e-6)  # one view in each bin
  assert 100 * np.mean(recall_3d) == pytest.approx(record["correspondence_recall_paper"], abs=1e-4)


def test_cosine(pairs):
  arrays, record, inputs = pairs
  recalls = []
  for i, views in enumerate(inputs):
    source, target, _ = navi.correspond(*views, record["num_corr"], by="cosine")
    metres, _ = navi.errors(source, target, arrays[f"Rt_{i}"])
    np.testing.assert_allclose(np.sort(metres), np.sort(arrays[f"err3d_cosine_{i}"]), atol=1e-6)
    recalls.append(np.mean([matching.recall(metres, t) for t in navi.THRESHOLDS]))
  assert 100 * np.mean(recalls) == pytest.approx(
      record["correspondence_recall_paper_cosine"], abs=1e-4)


def test_pieces(recorded):
  pieces = recorded("navi")["pieces"]
  np.testing.assert_allclose(navi.depth_millimetres(pieces["depth_png"]), pieces["depth_mm"],
                             rtol=1e-5)
  np.testing.assert_allclose(navi.camera_pose(pieces["annotation"]), pieces["camera_to"],
                             atol=1e-6)


def test_crops(recorded):
  image = np.arange(3 * 20 * 24).reshape(3, 20, 24)
  for case in recorded("navi")["pieces"]["bbox_crop_of_3x20x24_arange"]:
    top, bottom, left, right = case["mask"]
    mask = np.zeros((20, 24), bool)
    mask[top:bottom, left:right] = True
    row, column, side = navi.object_crop(mask)
    crop = image[:, row:row + side, column:column + side]
    assert list(crop.shape) == case["shape"] and crop[0, 0, 0] == case["first"]
  with pytest.raises(ValueError, match="no pixel of the object"):
    navi.object_crop(np.zeros((4, 4), bool))


def test_angles(pairs):
  arrays, record, _ = pairs
  for i, view in enumerate(record["views"]):
    assert navi.relative_angle(np.eye(4), arrays[f"Rt_{i}"]) == pytest.approx(
        view["angle"], abs=1e-2)
