"""Linear segmentation on data sets as they lie on disk."""

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals.extraction import Stopped
from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import segmenting


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
  monkeypatch.setattr(segmenting, "BATCH", 4)


def test_voc(session_of):
  result = segmenting.run(session_of("VOC", size=64, steps=3))
  assert 0 < result.figures["VOC2012 mIoU"] <= 100
  assert result.protocol["train"] == 6 and result.protocol["classes"] == 21
  assert "3 steps, not 40000" in result.differs
  assert result.pictures["VOC2012.png"].dtype == np.uint8


def test_a_stop_in_the_middle_changes_nothing(session_of, tmp_path, monkeypatch):
  asked, trained = [], []
  def stop():
    asked.append(1)
    return len(asked) == 3

  with pytest.raises(Stopped):
    segmenting.run(session_of("VOC", size=64, steps=4, stop=stop))
  train = segmenting.dense_probe.train
  monkeypatch.setattr(segmenting.dense_probe, "train", lambda *args, **how: trained.append(
      (how["kept"].step, train(*args, **how))) or trained[-1][1])
  resumed = segmenting.run(session_of("VOC", size=64, steps=4))
  whole = segmenting.run(session_of("VOC", tmp_path / "other", size=64, steps=4))
  assert [step for step, _ in trained] == [2, 0] and resumed.figures == whole.figures
  np.testing.assert_array_equal(trained[0][1].losses, trained[1][1].losses)


def write(path, array, mode=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(array, np.uint8), mode).save(path)


def test_the_zero_of_ade_is_no_class(session_of, tmp_path):
  for split in ("training", "validation"):
    write(tmp_path / f"ADEChallengeData2016/images/{split}/ADE_1.jpg", np.zeros((9, 9, 3)))
    write(tmp_path / f"ADEChallengeData2016/annotations/{split}/ADE_1.png", [[0, 1, 150]] * 3)
  name, splits = segmenting.find(session_of(tmp_path))
  assert name == "ADE20K" and len(splits["val"]) == 1
  assert segmenting.labels_of(name, splits["val"][0][1])[0].tolist() == [255, 0, 149]


def test_cityscapes_needs_its_label_files(session_of, tmp_path):
  for split in ("train", "val"):
    write(tmp_path / f"leftImg8bit/{split}/ulm/ulm_1_leftImg8bit.png", np.zeros((9, 9, 3)))
  with pytest.raises(LayoutError, match=r"labelTrainIds.png is not there; cityscapesscripts"):
    segmenting.find(session_of(tmp_path))
  for split in ("train", "val"):
    write(tmp_path / f"gtFine/{split}/ulm/ulm_1_gtFine_labelTrainIds.png", np.zeros((9, 9)))
  assert segmenting.find(session_of(tmp_path))[0] == "Cityscapes"


def test_layouts(session_of, tmp_path):
  with pytest.raises(LayoutError, match=r"has no VOCdevkit/VOC2012/ImageSets/Segmentation/train"):
    segmenting.run(session_of("DAVIS", size=64))


@pytest.mark.parametrize("height, width", [(20, 90), (64, 64), (300, 40)])
def test_crops_keep_images_and_labels_together(height, width):
  labels = np.zeros((height, width), np.uint8)
  labels[:, width // 2:] = 1
  image = np.repeat(200 * labels[..., None], 3, 2)
  for seed in range(8):
    x, y = segmenting.crop(image, labels, 32, np.random.default_rng(seed))
    assert x.shape == (32, 32, 3) and y.shape == (32, 32)
    known = y != 255
    assert ((x[..., 0] > 100) == (y == 1))[known].mean() > 0.9
    assert known.any() and not x[~known].any()
