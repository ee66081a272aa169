"""Object discovery on VOC as it lies on disk."""

import json
import shutil

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


def test_coco(session_of, mini_data, tmp_path):
  """Crowds do not count, and images without other boxes are left out."""
  names = [f"COCO_train2014_{i:012}.jpg" for i in range(3)]
  folder = tmp_path / "COCO/images/train2014"
  folder.mkdir(parents=True)
  for name, path in zip(names, sorted((mini_data / "VOC/VOCdevkit/VOC2007/JPEGImages").iterdir())):
    shutil.copy(path, folder / name)
  (tmp_path / "COCO/annotations").mkdir()
  box = lambda i, crowd, *sides: dict(image_id=i, iscrowd=crowd, bbox=sides)
  (tmp_path / "COCO" / discovery.COCO_BOXES).write_text(json.dumps(dict(
    images=[dict(id=7 + i, file_name=name) for i, name in enumerate(names)],
    annotations=[box(7, 0, 1.4, 2.6, 20, 30), box(7, 1, 0, 0, 9, 9), box(8, 1, 0, 0, 9, 9),
                 box(9, 0, 0, 0, 165, 122)])))
  listed = tmp_path / discovery.COCO_LIST
  listed.write_text("\n".join(f"train2014/{name}" for name in names))
  sets = discovery.find(session_of(tmp_path))
  assert list(sets) == ["COCO-20k"]
  assert [(path.name, boxes) for path, boxes in sets["COCO-20k"]] == [
    (names[0], [[1, 3, 21, 33]]), (names[2], [[0, 0, 165, 122]])]
  assert "COCO-20k, best" in discovery.run(session_of(tmp_path)).figures
  listed.write_text("train2014/COCO_train2014_9.jpg")
  with pytest.raises(LayoutError, match=r"names COCO_train2014_9.jpg, which .* does not have"):
    discovery.find(session_of(tmp_path))
  (tmp_path / "COCO" / discovery.COCO_BOXES).write_text("{}")
  with pytest.raises(LayoutError, match="holds no annotations of COCO"):
    discovery.find(session_of(tmp_path))
