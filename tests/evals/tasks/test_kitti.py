"""Linear depth on KITTI as it lies on disk."""

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import depth_maps
from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import kitti


@pytest.fixture
def data(tmp_path, monkeypatch):
  """Roads at an eighth of KITTI's size, nearer at the bottom, with depth at some pixels."""
  monkeypatch.setattr(depth_maps, "BATCH", 2)
  rng = np.random.default_rng(0)
  for split, count in (("train", 3), ("test", 2)):
    lines = []
    for i in range(count):
      metres = np.broadcast_to(np.linspace(70, 4, 48)[:, None], (48, 152)) * rng.uniform(0.8, 1.1)
      drive = f"2011_09_26_drive_{i:04}_sync"
      image = f"2011_09_26/{drive}/image_02/data/{split}.png"
      depth = f"{drive}/proj_depth/groundtruth/image_02/{split}.png"
      annotated = tmp_path / "data_depth_annotated" / ("val" if i else "train") / depth
      for path in (tmp_path / "raw" / image, annotated):
        path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.repeat((3 * metres).astype(np.uint8)[..., None], 3, 2)).save(
          tmp_path / "raw" / image)
      sparse = np.where(rng.random(metres.shape) < 0.3, 256 * metres, 0)
      Image.fromarray(sparse.astype(np.uint16)).save(annotated)
      lines.append(f"{image} {depth} 721.5377")
    lines.append("2011_09_26/without/image_02/data/0.png None 721.5377")
    (tmp_path / f"eigen_{split}_files_with_gt.txt").write_text("\n".join(lines) + "\n")
  return tmp_path


def test_run(session_of, data):
  result = kitti.run(session_of(data, steps=30))
  assert 0 < result.figures["RMSE"] < 40 and result.protocol["train"] == 3
  assert result.protocol["region"] == "Garg" and "30 steps, not 38400" in result.differs
  assert result.paper["vit7b16"]["RMSE"] == 2.346


def test_the_lower_middle_is_looked_at():
  image = np.zeros((375, 1242, 3), np.uint8)
  image[23:, 13:1229] = 1
  x, y = kitti.lower_middle(image, image[..., 0])
  assert x.shape == (352, 1216, 3) and x.min() == 1 and y.min() == 1
  assert kitti.window(352, 1216) == ((0, 352, 0, 1216), (352, 704))
  assert kitti.lower_middle(image[:100, :200], image[:100, :200, 0])[1].shape == (100, 200)


def test_layouts(session_of, data):
  with pytest.raises(LayoutError, match="has no data_depth_annotated"):
    kitti.run(session_of("DAVIS"))
  pairs = kitti.read_list(session_of(data), kitti.LISTS[0])
  assert [depth.relative_to(data).parts[1] for _, depth in pairs] == ["train", "val", "val"]
  pairs[1][1].unlink()
  with pytest.raises(LayoutError, match=r"is in eigen_train.* but it is not there"):
    kitti.read_list(session_of(data), kitti.LISTS[0])
  (data / kitti.LISTS[1]).write_text("alone.png\n")
  with pytest.raises(LayoutError, match=r"has a line 'alone.png'"):
    kitti.read_list(session_of(data), kitti.LISTS[1])
  (data / kitti.LISTS[1]).write_text("a.png None 1\n")
  with pytest.raises(LayoutError, match="names no images with depth"):
    kitti.read_list(session_of(data), kitti.LISTS[1])
