"""With features that are made of the truth, tasks reach what their grid of patches allows."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import mini_table, mini_truth, mini_views
from dinov3_jax.evals.mini_plan import PLANS
from dinov3_jax.evals.tasks import views

# Figures of patches of 8 pixels on the data of these tests, and what they must reach. A right
# keypoint may lie a patch away from its own; masks are lost where a patch has two labels.
CEILINGS = {
  "DAVIS": {"J&F": 80}, "MOSE": {"J&F": 75}, "VOC2007": {"VOC2007, best": 100},
  "folders": {"top-1": 100, "top-1, k = 20": 100},
  "ImageNet": {"val": 100, "ReaL": 100, "V2": 100, "A": 100, "R": 100, "Sketch": 100},
  "oxford": {"roxford5k easy": 100, "roxford5k medium": 100, "roxford5k hard": 100},
  "AmsterTime": {"mAP": 100}, "Met": {"GAP": 100, "GAP-": 100, "accuracy": 100},
  "SPair-71k": {"recall": 35}, "NAVI": {"recall, cosine": 99, "recall, ratio": 99},
  "foreground": {"average precision": 100}}


def plans(*tasks):
  return [pytest.param(plan, id=f"{plan.task} {plan.data}") for plan in PLANS
          if plan.data in mini_truth.TRUTHS and plan.task in tasks]


@pytest.mark.parametrize("plan", plans(
    "tracking", "knn", "linear", "logistic", "imagenet", "oxford", "amstertime", "met", "spair",
    "navi", "foreground"))
def test_the_ceiling(plan, mini_data, monkeypatch):
  monkeypatch.setattr(views, "POINTS", 64)
  figures = mini_table.truth(plan, mini_data, 8)
  reached = {name: figures[name] >= least - 1e-4 for name, least in CEILINGS[plan.data].items()
             if name in figures}
  assert reached and all(reached.values()), figures
  if plan.task == "imagenet":
    assert figures["C, mCE over 15"] == figures["C, mCE over 19"] == 0
    assert set(reached) == set(CEILINGS["ImageNet"])


@pytest.mark.parametrize("plan", plans("segmentation", "discovery"))
def test_masks_and_boxes(plan, mini_data):
  plan = dataclasses.replace(plan, steps=plan.steps and 20)
  figures = mini_table.truth(plan, mini_data, 8)
  assert figures.get("VOC2012 aAcc", 100) > 90 and figures.get("VOC2007, best", 100) == 100


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None,
                    reason="needs the photographs of `pip install scikit-image`")
def test_the_stereo_pair(tmp_path):
  mini_views.middlebury(tmp_path / "Middlebury", None, None)
  (plan,) = [plan for plan in PLANS if plan.task == "stereo"]
  figures = mini_table.truth(plan, tmp_path, 8)
  assert figures["recall at 5 cm, all patches"] > 97
  assert figures["recall at 5 cm, 1000 by ratio"] > 99


def test_depth_is_grey(mini_data, tmp_path):
  """White is the farthest, and every pixel has the depth of the nearest one that was scanned."""
  mini_truth.write(mini_data, "KITTI", tmp_path / "KITTI", 8)
  for image in sorted((tmp_path / "KITTI/raw").rglob("train*.png"))[:3]:
    annotated = mini_data / "KITTI/data_depth_annotated"
    (depth,) = annotated.rglob(f"{image.parts[-4]}/**/{image.name}")
    metres = np.asarray(Image.open(depth), float) / 256
    grey = np.asarray(Image.open(image), float)[..., 0]
    scanned = (metres > 0) & (metres < 80)
    np.testing.assert_allclose(grey[scanned] / 255 * 80, metres[scanned], atol=0.17)


def test_what_has_no_truth_is_left_out(mini_data):
  (plan,) = [plan for plan in PLANS if plan.data == "SSv2"]
  assert mini_table.truth(plan, mini_data, 8) == {}
