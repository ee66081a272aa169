"""Open-vocabulary segmentation on small data sets as they lie on disk."""

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import segmentation_text


def write(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.asarray(array, np.uint8)).save(path)


@pytest.fixture
def ade(tmp_path):
  root = tmp_path / "ADEChallengeData2016"
  for split in ("training", "validation"):
    write(root / f"images/{split}/ADE_1.jpg", np.full((20, 30, 3), 200))
    write(root / f"annotations/{split}/ADE_1.png", np.repeat([[1] * 15 + [150] * 15], 20, 0))
  rows = ["Idx\tRatio\tTrain\tVal\tName"] + [f"{i}\t0\t0\t0\tclass {i}, other" for i in range(150)]
  (root / "objectInfo150.txt").write_text("\n".join(rows))
  return tmp_path


def test_every_pixel_gets_a_class(text_session, ade):
  result = segmentation_text.run(text_session(ade, size=32))
  assert result.protocol == dict(size=32, window=24, stride=12, images=1, classes=150,
                                 templates=80)
  assert 0 <= result.figures["ADE20K mIoU"] <= 100
  assert result.pictures["ADE20K.png"].dtype == np.uint8


def test_the_nearest_class_wins(text_session, ade):
  """With the features of the image's own patches in place of texts, the patches name themselves."""
  session = text_session(ade)
  rng = np.random.default_rng(0)
  image = np.repeat(np.repeat(rng.integers(0, 255, (2, 2, 3)), 8, 0), 8, 1).astype(np.uint8)
  x = segmentation_text.normalize(image, session.prepare.mean, session.prepare.std)
  patches = session.model.encode_image(x[None])["patches"][0]
  found = segmentation_text.predict(session, patches, image, 16, 16, 16, (2, 2))
  assert found.shape == (2, 2) and found.dtype == np.uint8
  np.testing.assert_array_equal(found, [[0, 1], [2, 3]])


def test_names(text_session, ade):
  session = text_session(ade)
  assert len(segmentation_text.names_of(session, "VOC2012")) == 21
  assert len(segmentation_text.names_of(session, "Cityscapes")) == 19
  assert segmentation_text.names_of(session, "ADE20K")[:2] == ["class 0", "class 1"]
  (ade / segmentation_text.ADE_TABLE).write_text("head\n1\ta\n")
  with pytest.raises(LayoutError, match="has 1 classes, not 150"):
    segmentation_text.names_of(session, "ADE20K")
