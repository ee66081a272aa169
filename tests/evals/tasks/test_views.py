"""Correspondence on NAVI as it lies on disk."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import matching, navi
from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import views


def test_run(session_of, monkeypatch):
  monkeypatch.setattr(views, "EVERY", 2)
  monkeypatch.setattr(views, "POINTS", 32)
  result = views.run(session_of("NAVI", size=128))
  assert result.protocol["pairs"] == 2
  assert result.figures["recall, cosine"] == pytest.approx(np.mean(
      [result.figures[f"recall at {cm} cm, cosine"] for cm in (1, 2, 5)]))
  for by in ("cosine", "ratio"):
    both = {norm: result.figures[f"recall, {by}, {norm}"] for norm in views.NORMS}
    assert both["with the norm"] != both["without the norm"]
    assert result.figures[f"recall, {by}"] == max(both.values()) == both[
      result.protocol["better"][by]]
  assert result.pictures["matches.png"].shape[1] > 256
  assert "images of 128 pixels, not 512" in result.differs


def test_places_on_the_object_as_features_find_each_other(session_of, monkeypatch):
  """It fails if points, poses, crops or units do not fit each other."""
  monkeypatch.setattr(views, "POINTS", 64)
  session = session_of("NAVI")
  first, second = views.pairs(session)[0]
  points, poses = [], []
  for view in (first, second):
    image, xyz, (top, left, side) = views.load(view, 128)
    assert image.shape == (128, 128, 3) and 0 <= top <= 512 - side and 0 <= left <= 512 - side
    pose = navi.camera_pose(view.annotation)
    own = (xyz - pose[:3, 3] / 1000) @ pose[:3, :3]  # in the object's frame
    radius = np.linalg.norm(own[xyz[..., 2] > 0], axis=-1)
    np.testing.assert_allclose(radius, 0.06, atol=0.001)
    points.append((own, xyz))
    poses.append(pose)
  transform = poses[1] @ np.linalg.inv(poses[0])
  transform[:3, 3] /= 1000
  (a, source), (b, target) = points
  unit = lambda x: np.concatenate([x / 0.06, np.ones_like(x[..., :1])], -1)
  source, target, _ = navi.correspond(unit(a), unit(b), source, target, by="cosine")
  errors, _ = navi.errors(source, target, transform)
  assert matching.recall(errors, 0.01) > 0.95


def test_points_are_drawn_where_they_are_seen(session_of):
  view = views.pairs(session_of("NAVI"))[0][0]
  _, xyz, square = views.load(view, 128)
  there = xyz[..., 2] > 0
  found = views.pixels(xyz[there], view, square, 128)
  y, x = np.nonzero(there)
  np.testing.assert_allclose(found, np.stack([x, y], 1) + 0.5, atol=3)


def test_layouts(session_of, mini_data, tmp_path):
  with pytest.raises(LayoutError, match=r"has no OBJECT/wild_set/annotations.json"):
    views.run(session_of("DAVIS"))
  shutil.copytree(mini_data / "NAVI/navi_v1", tmp_path / "data")  # without the folder around it
  session = session_of(tmp_path / "data", size=64)
  first, _ = views.pairs(session)[0]
  depth = first.files[1]
  stored = np.asarray(Image.open(depth))
  for wrong, said in ((stored.astype(np.uint8), "has the mode L: NAVI's depth"),
                      (stored[:-2], "its image of"), (0 * stored, "no pixel of the object")):
    Image.fromarray(wrong).save(depth)
    with pytest.raises(LayoutError, match=said):
      views.load(first, 64)
  file = first.folder / "annotations.json"
  annotations = json.loads(file.read_text())
  file.write_text(json.dumps(annotations[:1]))
  with pytest.raises(LayoutError, match="no two views"):
    views.pairs(session)
  file.write_text('[{"filename": "000.jpg"}]')
  with pytest.raises(LayoutError, match="has no annotations of NAVI"):
    views.pairs(session)
