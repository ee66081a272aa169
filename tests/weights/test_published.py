"""The features of the published weights, where those weights are.

They are gated, so nothing is downloaded. DINOV3_WEIGHTS names a folder that holds, under their own
names, folders of Hugging Face or files of the reference; DINOV3_COCO_IMAGE the picture 000000039769
of COCO's validation set of 2017, which may also lie in that folder.
"""

import os
import pathlib

import jax
import numpy as np
import pytest

import dinov3_jax
from dinov3_jax.models.variants import VARIANTS

# The first five of CLS and of the first patch, both normed; recorded with the conversion scripts of
# Hugging Face, for 224x224 pixels normalised with ImageNet's statistics (SAT-493M weights, too).
PUBLISHED = {
    ("vits16", "lvd1689m"): (
        (0.463561, -0.415609, 0.408236, -0.126613, -0.286636),
        (-0.038754, -0.250895, -0.016392, -0.455473, 0.571582)),
    ("vits16plus", "lvd1689m"): (
        (-0.471349, -1.365778, -0.317983, 0.377219, -0.769085),
        (0.144551, -0.388117, -0.393433, -0.157695, -0.600380)),
    ("vitb16", "lvd1689m"): (
        (1.034643, -0.180609, -0.341018, -0.066376, -0.011383),
        (-0.082523, -0.456272, -0.728029, -0.430680, -0.152880)),
    ("vitl16", "lvd1689m"): (
        (0.484527, -0.582214, 0.480636, 0.592040, 0.945166),
        (-0.211367, -0.490863, -0.257131, 0.101763, 0.154511)),
    ("vith16plus", "lvd1689m"): (
        (-0.064575, -0.148866, -0.621524, 0.634878, 0.152695),
        (-0.093817, 0.287407, -0.050036, 0.428043, 0.094561)),
    ("vit7b16", "lvd1689m"): (
        (0.275439, -0.261353, 0.067772, 0.049936, -0.158747),
        (0.044442, -0.052542, 0.070777, -0.065111, -0.026546)),
    ("vitl16", "sat493m"): (
        (-0.33235, 0.34052, -0.22087, 0.21434, 0.09003),
        (0.18488, 0.30309, -0.20689, 0.12848, 0.06207)),
    ("vit7b16", "sat493m"): (
        (-0.19779, 0.11819, -0.00581, -0.21055, -0.03971),
        (-0.12423, 0.07879, -0.10057, 0.02835, -0.11727)),
    ("convnext_tiny", "lvd1689m"): (
        (-6.372119, 1.300791, 2.074303, -0.079975, 0.607205),
        (0.490530, -3.713466, 1.848513, -1.040319, -1.090818)),
    ("convnext_small", "lvd1689m"): (
        (-0.903914, 1.412183, 0.287465, 0.175296, -2.397940),
        (-1.081114, 0.637362, 3.748765, 0.170179, 1.445153)),
    ("convnext_base", "lvd1689m"): (
        (0.155366, -0.378771, -0.735157, -2.818718, 0.015095),
        (3.039118, 0.778155, -1.961322, -1.607147, -2.411941)),
    ("convnext_large", "lvd1689m"): (
        (-2.219094, -0.594451, -2.300294, -0.957415, -0.520473),
        (-1.477349, -0.217038, -3.128137, 0.418962, 0.334949)),
}


def find(name, data):
  """The weights and the picture, or a reason to skip."""
  if "DINOV3_WEIGHTS" not in os.environ:
    pytest.skip("the weights are gated: set DINOV3_WEIGHTS to the folder where you have them")
  folder = pathlib.Path(os.environ["DINOV3_WEIGHTS"])
  release = VARIANTS[name].releases[data]
  places = [folder / release.repo.split("/")[1],
            folder / f"dinov3_{name}_pretrain_{data}-{release.digest}.pth"]
  weights = next((place for place in places if place.exists()), None)
  image = pathlib.Path(os.environ.get("DINOV3_COCO_IMAGE", folder / "000000039769.jpg"))
  if weights is None:
    pytest.skip(f"neither {places[0]} nor {places[1].name} is there")
  if not image.exists():
    pytest.skip(f"{image} is not there: set DINOV3_COCO_IMAGE")
  return weights, image


@pytest.mark.parametrize("name, data", PUBLISHED)
def test_features_are_the_published_ones(name, data):
  weights, image = find(name, data)
  images = dinov3_jax.preprocess()(image)[None]
  out = jax.jit(lambda model, x: model(x))(dinov3_jax.load(name, weights), images)
  cls, patch = PUBLISHED[name, data]
  np.testing.assert_allclose(out["cls"][0, :5], cls, rtol=0, atol=1e-3)
  np.testing.assert_allclose(out["patches"][0, 0, :5], patch, rtol=0, atol=1e-3)


def test_where_the_weights_are_looked_for(monkeypatch, tmp_path):
  monkeypatch.delenv("DINOV3_WEIGHTS", raising=False)
  with pytest.raises(pytest.skip.Exception, match="gated: set DINOV3_WEIGHTS"):
    find("vits16", "lvd1689m")
  monkeypatch.setenv("DINOV3_WEIGHTS", str(tmp_path))
  monkeypatch.delenv("DINOV3_COCO_IMAGE", raising=False)
  with pytest.raises(pytest.skip.Exception, match=r"neither .*/dinov3-vits16-pretrain-.* nor"):
    find("vits16", "lvd1689m")
  file = tmp_path / "dinov3_convnext_tiny_pretrain_lvd1689m-21b726bb.pth"
  file.touch()
  with pytest.raises(pytest.skip.Exception, match=r"000000039769\.jpg is not there"):
    find("convnext_tiny", "lvd1689m")
  (tmp_path / "000000039769.jpg").touch()
  assert find("convnext_tiny", "lvd1689m") == (file, tmp_path / "000000039769.jpg")
