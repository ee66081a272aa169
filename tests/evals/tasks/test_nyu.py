"""Linear depth on NYUv2 as it lies on disk."""

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import depth_maps
from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import nyu


@pytest.fixture
def data(tmp_path, monkeypatch):
  """Images whose brightness is their depth, at a quarter of NYU's size."""
  monkeypatch.setattr(depth_maps, "BATCH", 2)
  rng = np.random.default_rng(0)
  (tmp_path / "scene").mkdir()
  for split, count in (("train", 4), ("test", 2)):
    lines = []
    for i in range(count):
      near, far = np.sort(rng.uniform(1, 9, 2))
      metres = np.broadcast_to(np.linspace(near, far, 160), (120, 160))
      image = np.repeat((25 * metres).astype(np.uint8)[..., None], 3, 2)
      Image.fromarray(image).save(tmp_path / f"scene/rgb_{split}{i}.jpg")
      Image.fromarray((1000 * metres).astype(np.uint16)).save(
          tmp_path / f"scene/sync_depth_{split}{i}.png")
      lines.append(f"/scene/rgb_{split}{i}.jpg /scene/sync_depth_{split}{i}.png 518.8579")
    (tmp_path / f"nyu_{split}.txt").write_text("\n".join(lines) + "\n")
  return tmp_path


def test_run(session_of, data):
  result = nyu.run(session_of(data, steps=30))
  assert 0 < result.figures["RMSE"] < 5 and 0 <= result.figures["within 1.25"] <= 1
  assert result.protocol["train"] == 4 and "30 steps, not 38400" in result.differs
  assert result.figures["RMSE of a constant"] > 0.5
  assert result.pictures["depth.png"].dtype == np.uint8


def test_training_crops_lie_within_the_white_edge():
  assert nyu.window(480, 640) == ((45, 472, 43, 608), (416, 544))
  assert nyu.window(240, 320) == ((22, 236, 21, 304), (208, 272))


def test_layouts(session_of, data):
  with pytest.raises(LayoutError, match=r"has no nyu_train.txt"):
    nyu.run(session_of("DAVIS"))
  (data / "nyu_test.txt").write_text("/scene/rgb_test0.jpg\n")
  with pytest.raises(LayoutError, match=r"nyu_test.txt has a line"):
    nyu.read_list(session_of(data), "nyu_test.txt")
  (data / "nyu_test.txt").write_text("/scene/rgb_test0.jpg /scene/none.png 1\n")
  with pytest.raises(LayoutError, match=r"none.png is in nyu_test.txt, but it is not there"):
    nyu.read_list(session_of(data), "nyu_test.txt")
  (data / "nyu_test.txt").write_text("")
  with pytest.raises(LayoutError, match="names no images"):
    nyu.read_list(session_of(data), "nyu_test.txt")
