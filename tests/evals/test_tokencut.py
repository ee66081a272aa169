"""Cuts, boxes and CorLoc against recorded ones."""

import numpy as np
import pytest

from dinov3_jax.evals import tokencut


@pytest.fixture(scope="module")
def record(recorded):
  return recorded("tokencut")


@pytest.mark.parametrize("i", range(24))
def test_cases(golden, record, i):
  arrays, case = golden("evals/tokencut_features"), record["cases"][i]
  rows, columns = record["grid"]
  features = arrays[f"feats_{case['feats']}"][1:].reshape(rows, columns, -1)  # without CLS
  cut = tokencut.cut(features, case["tau"], case["weighted"])
  if case["well_posed"]:
    np.testing.assert_array_equal(cut.foreground, arrays[f"bipartition_{i}"])
  if case["box_well_posed"]:
    np.testing.assert_array_equal(cut.component, arrays[f"mask_{i}"])
    assert cut.box(record["patch"], *record["image_size"]) == tuple(case["box"])
  assert cut.component.any() and not (cut.component & ~cut.foreground).any()


def test_corloc(record):
  corloc = record["corloc"]
  for box, own, expected, hit in zip(*(corloc[key] for key in ("pred", "gt", "iou", "hit"))):
    np.testing.assert_allclose(tokencut.iou(box, own), expected, atol=1e-6)
    assert tokencut.corloc([box], [own]) == hit
  assert 100 * tokencut.corloc(corloc["pred"], corloc["gt"]) == corloc["corloc"]


def test_boxes(record):
  boxes = record["boxes"]
  objects = boxes["voc"]["annotation"]["object"]
  assert tokencut.voc_boxes(objects) == boxes["voc_boxes"]
  assert tokencut.voc_boxes(objects, hard=False) == boxes["voc_boxes_no_hard"]
  assert tokencut.coco_boxes(boxes["coco"]) == boxes["coco_boxes"]


def test_bad_input():
  with pytest.raises(ValueError, match="two patches or more"):
    tokencut.cut(np.ones((1, 1, 3)), 0.2)
  with pytest.raises(ValueError, match="1 boxes for 2 images"):
    tokencut.corloc([[0, 0, 1, 1]], [[], []])
