"""Correspondence of calibrated stereo pairs."""

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import stereo

CALIBRATION = dict(focal=100.0, x=40.0, y=24.0, doffs=2.0, baseline=200.0)


@pytest.fixture
def scene(tmp_path):
  """A wall in front of the cameras that each see the same of it, 8 pixels apart."""
  folder = tmp_path / "Wall"
  folder.mkdir()
  wall = np.random.default_rng(0).integers(0, 255, (48, 88, 3), np.uint8)
  Image.fromarray(wall[:, :80]).save(folder / "im0.png")
  Image.fromarray(wall[:, 8:]).save(folder / "im1.png")
  disparity = np.full((48, 80), 8, ">f4")
  disparity[:8] = np.inf
  (folder / "disp0.pfm").write_bytes(b"Pf\n80 48\n1.0\n" + disparity[::-1].tobytes())
  (folder / "calib.txt").write_text(
    "cam0=[100 0 40; 0 100 24; 0 0 1]\ncam1=[100 0 42; 0 100 24; 0 0 1]\ndoffs=2\nbaseline=200\n")
  return folder


def test_equal_patches_are_found(session_of, scene):
  """A patch of the left image is the next one to the left in the right image."""
  session = session_of(scene.parent)
  session.patches = lambda image: image.reshape(6, 8, 10, 8, 3).swapaxes(1, 2).reshape(
      6, 10, -1).astype(np.float32) - 127
  figures = stereo.run(session).figures
  assert figures["recall at 5 cm, all patches"] == 90  # all but the first column, which is hidden
  assert figures["recall at 5 cm, 1000 by cosine"] == 90


def test_run(session_of, scene):
  result = stereo.run(session_of(scene.parent))
  assert len(result.figures) == 9 and result.pictures["matches.png"].dtype == np.uint8
  assert result.differs == ["the paper has no such task"]


def test_a_true_match_has_no_error(scene):
  points, there, calibration = stereo.scene_points(scene, 6, 10, 8)
  assert calibration == CALIBRATION and there[1:].all() and not there[0].any()
  np.testing.assert_allclose(points[there][:, 2], 2.0)  # 100 * 0.2 m / (8 + 2)
  y, x = (np.mgrid[:6, :10] + 0.5) * 8
  true = np.stack([x - 8, y], -1)[there]
  np.testing.assert_allclose(stereo.distances(points[there], true, calibration), 0, atol=1e-9)
  np.testing.assert_allclose(stereo.distances(points[there], true + np.array([5, 0]), calibration),
                             0.1)


def test_layouts(session_of, scene):
  with pytest.raises(LayoutError, match=r"has no SCENE/calib.txt"):
    stereo.run(session_of("DAVIS"))
  (scene / "disp0.pfm").write_bytes(b"Pf\n80 48\n1.0\n1234")
  with pytest.raises(LayoutError, match="says 80 x 48, but holds 1 values"):
    stereo.run(session_of(scene.parent))
  (scene / "disp0.pfm").write_bytes(b"P6\n80 48\n255\n")
  with pytest.raises(LayoutError, match="is no PFM file"):
    stereo.run(session_of(scene.parent))
  (scene / "disp0.pfm").unlink()
  with pytest.raises(LayoutError, match=r"has no disp0.pfm"):
    stereo.run(session_of(scene.parent))
  (scene / "calib.txt").write_text("cam0=[1 2]")
  with pytest.raises(LayoutError, match="is no calibration of Middlebury"):
    stereo.run(session_of(scene.parent))
