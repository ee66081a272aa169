import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import pca


def features(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype("f4")


@pytest.mark.parametrize("width", [6, 200])  # more patches than dimensions, and fewer
def test_components_are_those_of_the_covariance(width):
  patches = features(2, 5, 6, width) * np.linspace(4, 0.1, width, dtype="f4")
  rgb = pca.pca_rgb(patches)
  assert rgb.dtype == np.float32 and rgb.shape == (2, 5, 6, 3)
  x = patches.reshape(-1, width).astype("f8")
  u, _, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
  whitened = u[:, :3] * np.sqrt(len(x))
  components = np.log(rgb / (1 - rgb)).reshape(-1, 3) / 2
  np.testing.assert_allclose(np.abs(components), np.abs(whitened), rtol=1e-3, atol=1e-4)


def test_colours_do_not_depend_on_scale_offset_or_order():
  patches = features(3, 4, 4, 16) * np.arange(1, 17, dtype="f4")
  rgb = pca.pca_rgb(patches)
  np.testing.assert_allclose(pca.pca_rgb(patches * 30 + 5), rgb, atol=1e-4)
  np.testing.assert_allclose(pca.pca_rgb(patches[::-1])[::-1], rgb, atol=1e-4)


def test_joint_and_alone():
  patches = np.stack([features(4, 4, 8), 3 + features(4, 4, 8, seed=1)])
  alone = pca.pca_rgb(patches, joint=False)
  np.testing.assert_array_equal(alone[1], pca.pca_rgb(patches[1:])[0])
  joint = pca.pca_rgb(patches)
  # What differs most is then the image: its colour alone tells the two apart.
  assert np.ptp([joint[0, ..., 0].mean(), joint[1, ..., 0].mean()]) > 0.6
  assert np.ptp([alone[0, ..., 0].mean(), alone[1, ..., 0].mean()]) < 0.2


def test_mask_hides_and_leaves_out():
  patches = features(2, 4, 4, 8)
  mask = np.random.default_rng(1).random((2, 4, 4)) < 0.6
  wild = np.where(mask[..., None], patches, np.float32(1e6))
  rgb = pca.pca_rgb(wild, mask)
  assert (rgb[~mask] == 0).all() and (rgb[mask] > 0).all()
  np.testing.assert_array_equal(rgb, pca.pca_rgb(patches, mask))
  assert (pca.pca_rgb(patches, np.zeros_like(mask)) == 0).all()


def test_collapsed_features_are_grey():
  np.testing.assert_allclose(pca.pca_rgb(np.full((2, 3, 3, 8), 0.1)), 0.5, atol=1e-3)
  two = np.full((1, 1, 2, 8), 0.1)
  two[0, 0, 0] = 1
  np.testing.assert_allclose(pca.pca_rgb(two)[..., 1:], 0.5, atol=1e-3)


@pytest.mark.parametrize("call, message", [
  (lambda: pca.pca_rgb(features(4, 4, 8)), r"\[B, h, w, D\]"),
  (lambda: pca.pca_rgb(features(1, 4, 4, 2)), "at least 3"),
  (lambda: pca.pca_rgb(features(1, 4, 4, 8), np.ones((4, 4))), "mask"),
  (lambda: pca.pca_rgb(features(1, 4, 4, 8) * np.nan), "finite"),
  (lambda: pca.similarity_map(features(4, 5, 8), (4, 0)), "4 x 5"),
  (lambda: pca.pca_picture(np.zeros((2, 8, 8, 3), "u1"), features(3, 4, 4, 8)), "3 feature maps"),
  (lambda: pca.pca_picture(np.zeros((1, 8, 8, 3)), features(1, 4, 4, 8)), "float64"),
])
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_similarity_map():
  patches = features(4, 5, 8)
  similarity = pca.similarity_map(patches, (1, 3))
  chosen = patches[1, 3]
  expected = patches @ chosen / np.linalg.norm(patches, axis=-1) / np.linalg.norm(chosen)
  np.testing.assert_allclose(similarity, expected, atol=1e-6)
  assert similarity.argmax() == 1 * 5 + 3


def test_heatmap_runs_from_dark_to_bright():
  colours = pca.heatmap([[-1, 0], [0.5, 1]])
  assert (np.diff(colours.reshape(4, 3).sum(-1)) > 0).all()
  np.testing.assert_allclose(colours[[0, 1], [0, 1]], pca.RAMP[[0, -1]])
  np.testing.assert_allclose(pca.heatmap([2.0], low=0, high=4), pca.heatmap([0, 2, 4])[1:2])
  assert np.isfinite(pca.heatmap(np.zeros((2, 2)))).all()


def test_picture_and_file(tmp_path):
  images = np.random.default_rng(0).integers(256, size=(3, 32, 48, 3), dtype="u1")
  patches = features(3, 2, 3, 8)
  canvas = pca.pca_picture(images, patches, columns=2, least=64)
  assert canvas.dtype == np.uint8 and canvas.shape == (12 + 2 * 76, 12 + 2 * (2 * 96 + 4 + 12), 3)
  np.testing.assert_array_equal(canvas[12:76:2, 12:108:2], images[0])
  np.testing.assert_array_equal(canvas[88:152:2, 12:108:2], images[2])
  colours = pca.enlarge(pca.pca_rgb(patches)[1], 64, 96)
  np.testing.assert_array_equal(canvas[12:76, 320:416], colours)
  assert (canvas[88:152, 220:] == 255).all() and (canvas[:12] == 255).all()
  pca.save(tmp_path / "new" / "pca.png", canvas)
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "pca.png")), canvas)
