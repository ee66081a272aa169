"""J and F against recorded figures."""

import numpy as np
import pytest

from dinov3_jax.evals import video_masks as v


def test_pairs(golden):
  arrays = golden("evals/davis_masks")
  for i, name in enumerate(arrays["names"]):
    gt, pred, void = (arrays[key][i] for key in ("gt", "pred", "void"))
    assert v.region(pred, gt) == pytest.approx(arrays["J_no_void"][i], abs=1e-6), name
    assert v.contour(pred, gt) == pytest.approx(arrays["F_no_void"][i], abs=1e-6), name
    assert v.region(pred, gt, void) == pytest.approx(arrays["J"][i], abs=1e-6), name
    assert v.contour(pred, gt, void) == pytest.approx(arrays["F"][i], abs=1e-6), name
    np.testing.assert_array_equal(v.boundary(gt), arrays["gt_boundary"][i])


def test_radius(recorded):
  for height, width, radius in recorded("davis")["boundary_radius"]:
    assert v.boundary_radius(height, width) == radius


def test_data_set(golden, recorded):
  arrays, record = golden("evals/davis_masks"), recorded("davis")["dataset"]
  scores = {name: v.score(arrays[f"{name}__pred"], arrays[f"{name}__gt"])
            for name in ("bird", "two-dogs")}
  for i, letter in enumerate("JF"):
    for key, value in record[f"{letter}_per_object"].items():
      name, number = key.rsplit("_", 1)
      assert scores[name][int(number)][i].mean() == pytest.approx(value, abs=1e-6)
  for key, value in v.figures(scores).items():
    assert value == pytest.approx(record[key], abs=1e-6)


def test_bad_input():
  mask = np.ones((4, 4), int)
  with pytest.raises(ValueError, match="three or more, not 2 and 2"):
    v.score([mask] * 2, [mask] * 2)
  with pytest.raises(ValueError, match="no object"):
    v.score([mask * 0] * 3, [mask * 0] * 3)
  with pytest.raises(ValueError, match="frame 1 has an object 2, the first one has 1"):
    v.score([mask, mask * 2, mask], [mask] * 3)
  with pytest.raises(ValueError, match=r"frame 1 is \(2, 4\), the true one \(4, 4\)"):
    v.score([mask, mask[:2], mask], [mask] * 3)
