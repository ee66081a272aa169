"""Linear depth on NYUv2 as it lies on disk."""

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import nyu


@pytest.fixture
def data(tmp_path, monkeypatch):
  """Images whose brightness is their depth, at a quarter of NYU's size."""
  monkeypatch.setattr(nyu, "BATCH", 2)
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
  assert result.pictures["depth.png"].dtype == np.uint8


def test_depth_is_in_metres(data):
  metres = nyu.read_depth(data / "scene/sync_depth_train0.png")
  assert metres.dtype == np.float32 and 1 <= metres.min() < metres.max() <= 9
  Image.fromarray(np.zeros((4, 4), np.uint8)).save(data / "grey.png")
  with pytest.raises(LayoutError, match="has the mode L: depth is a PNG of 16 bits"):
    nyu.read_depth(data / "grey.png")


def test_crops_keep_image_and_depth_together(data):
  metres = nyu.read_depth(data / "scene/sync_depth_train0.png")
  image = np.repeat((25 * metres)[..., None], 3, 2)
  for seed in range(6):
    x, y = nyu.crop(image, metres, np.random.default_rng(seed), 8)
    assert x.shape == (104, 136, 3) and y.shape == (104, 136)
    np.testing.assert_allclose(x[..., 0], 25 * y)
  with pytest.raises(LayoutError, match="has a depth of"):
    nyu.crop(image[:-1], metres, np.random.default_rng(0), 8)


def test_mirror_images_have_mirrored_depth(session_of, data):
  class Brightness:
    rates = np.ones(1)

    def outputs(self, tokens, head):
      return 50 * np.maximum(tokens, 0)[..., :1] * np.arange(4)

  session = session_of(data)
  session.run = lambda x: x[:, ::8, ::8]
  image = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)
  (found,) = nyu.predict(session, Brightness(), image, (16, 24))
  (turned,) = nyu.predict(session, Brightness(), image[:, ::-1], (16, 24))
  np.testing.assert_allclose(found, turned[:, ::-1], atol=1e-5)


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
