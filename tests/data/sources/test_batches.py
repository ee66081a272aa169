"""Batches of whole images: each once, in order, without the damaged."""

import numpy as np
from PIL import Image

from dinov3_jax.data.sources import eval_batches, open_source


def save(path, color=(10, 200, 30), size=(12, 9), **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, color).save(path, **options)


def test_eval_batches_see_every_image_once_and_skip_damaged_ones(tmp_path, caplog):
  for i in range(7):
    save(tmp_path / "ab"[i % 2] / f"{i}.png", color=(10 * i, 0, 0), size=(20, 30))
  (tmp_path / "a" / "1.png").write_bytes(b"broken")
  batches = list(eval_batches(open_source(tmp_path, "all"), 16, 3))
  assert [images.shape for images, _, _ in batches] == 3 * [(3, 16, 16, 3)]
  assert [len(names) for _, _, names in batches] == [3, 3, 1]
  names = [name for _, _, part in batches for name in part]
  assert names == ["a/0.png", "a/2.png", "a/4.png", "a/6.png", "b/1.png", "b/3.png", "b/5.png"]
  assert np.concatenate([labels for _, labels, _ in batches]).tolist() == [0, 0, 0, 0, 1, 1, 1]
  assert batches[1][0][:, 8, 8, 0].tolist() == [60, 10, 30]
  assert not batches[2][0][1:].any()
  assert "a/1.png" in caplog.text


def test_eval_batches_sample_a_limit_over_all_classes(tmp_path):
  for i in range(30):
    for kind in ("cat", "dog", "bird"):
      save(tmp_path / kind / f"{i:02}.png")
  source = open_source(tmp_path, "all")
  def labels(**options):
    return np.concatenate([part for _, part, _ in eval_batches(source, 8, 16, 30, **options)])
  assert len(labels()) == 30 and set(labels()) >= {0, 1, 2}
  np.testing.assert_array_equal(labels(), labels())
  assert (labels() != labels(seed=1)).any()
