"""Object discovery on VOC as it lies on disk."""

import numpy as np
import pytest

from dinov3_jax.evals import tokencut
from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import discovery


def test_run(session_of):
  result = discovery.run(session_of("VOC"))
  assert len(result.figures) == 1 + len(tokencut.TAUS)
  assert result.figures["VOC2007, best"] == max(list(result.figures.values())[1:])
  assert result.protocol["sets"]["VOC2007"]["images"] == 3
  assert result.pictures["VOC2007.png"].dtype == np.uint8


def test_features_cover_the_whole_image(session_of):
  features = discovery.features_of(session_of("VOC"), np.zeros((17, 30, 3), np.uint8))
  assert features.shape[:2] == (3, 4)


def test_a_drawing_is_found_by_its_pixels(session_of, mini_data):
  """With colours as features the whole chain finds flat shapes on smooth backgrounds."""
  session, boxes, truth = session_of("VOC"), [], []
  session.run = lambda x: x[:, ::8, ::8] - x.mean((1, 2), keepdims=True)
  root = mini_data / "VOC/VOCdevkit/VOC2007"
  for path in sorted((root / "JPEGImages").iterdir()):
    image = discovery.decode(path, path)
    cut = tokencut.cut(discovery.features_of(session, image), 0.4)
    boxes.append(cut.box(8, *image.shape[:2]))
    truth.append(discovery.read_boxes(root / "Annotations" / f"{path.stem}.xml"))
  assert tokencut.corloc(boxes, truth) >= 2 / 3


def test_layouts(session_of, tmp_path):
  with pytest.raises(LayoutError, match=r"has no VOCdevkit/VOC2007/ImageSets/Main/trainval.txt"):
    discovery.run(session_of("DAVIS"))
  for text, message in (("<annotation>", "no annotation of VOC"),
                        ("<annotation><object/></annotation>", "no annotation of VOC"),
                        ("<annotation/>", "has no object")):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(LayoutError, match=message):
      discovery.read_boxes(tmp_path / "a.xml")
