"""Keypoints found in other images against recorded errors."""

import numpy as np
import pytest

from dinov3_jax.evals import spair

SIZE = 256


@pytest.fixture(scope="module")
def record(recorded):
  assert recorded("spair")["image_size"] == SIZE
  return recorded("spair")


def errors_of(pair, features):
  source, target = (features[f"{pair['category']}__{pair[key][:-4]}"].transpose(1, 2, 0)
                    for key in ("src_imname", "trg_imname"))
  points = [spair.scaled_keypoints(pair[f"{key}_kps"], max(pair[f"{key}_imsize"][:2]), SIZE)
            for key in ("src", "trg")]
  left, top, right, bottom = pair["trg_bndbox"]
  scale = max(right - left, bottom - top) / max(pair["trg_imsize"][:2])
  return spair.keypoint_errors(source, target, *points, SIZE, scale), scale


@pytest.mark.parametrize("category", ["cat", "bus"])
def test_recorded(golden, record, category):
  features, results = golden("evals/spair_features"), record["results"][category]
  errors = {}
  for pair in record["pairs"][category]:
    found, scale = errors_of(pair, features)
    expected = results["pairs"][pair["filename"]]
    assert scale == pytest.approx(expected["thresh_scale"], abs=1e-6)
    np.testing.assert_allclose(found, expected["error_same"], atol=1e-5)
    errors.setdefault(str(pair["viewpoint_variation"]), []).append(found)
  groups = errors | {"None": [x for own in errors.values() for x in own]}
  for name, own in groups.items():
    assert 100 * spair.recall(own) == pytest.approx(results[name]["recall_010"], abs=1e-4)
    assert 100 * spair.recall(own, 0.05) == pytest.approx(results[name]["recall_005"], abs=1e-4)
    by_image = np.mean([spair.recall([x]) for x in own])
    assert 100 * by_image == pytest.approx(results[name]["per_image_010"], abs=1e-4)


def test_average_over_classes(golden, record):
  features = golden("evals/spair_features")
  recalls = [spair.recall([errors_of(pair, features)[0] for pair in pairs])
             for pairs in record["pairs"].values()]
  assert 100 * np.mean(recalls) == pytest.approx(record["average_over_classes_010"]["None"],
                                                 abs=1e-4)


def test_padding():
  square = spair.squared(np.zeros((2, 3, 3), np.uint8))
  assert square.shape == (3, 3, 3) and (square[2] == 255).all() and not square[:2].any()


def test_bad_input():
  with pytest.raises(ValueError, match="1 keypoints in its source and 2 in its target"):
    spair.keypoint_errors(np.ones((2, 2, 3)), np.ones((2, 2, 3)), [[0, 0]], [[0, 0], [1, 1]], 8, 1)
