"""Zero-shot classification on folders of classes."""

import shutil

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import zeroshot
from dinov3_jax.text.zeroshot import accuracy, class_features, imagenet_names, prompts


def test_the_nearest_name_counts(text_session, captioned):
  session = text_session(captioned, size=16, batch_size=8)
  result = zeroshot.run(session)
  assert result.protocol == dict(size=16, images=12, classes=6, templates=80)
  assert "images of 16 pixels, not 512" in result.differs and result.paper == {}
  # The same by hand, image by image.
  classes = sorted(path.name for path in (captioned / "val").iterdir())
  texts = class_features(lambda x: session.model.encode_text(x)["global"], classes, prompts())
  right = []
  for i, name in enumerate(classes):
    for path in (captioned / "val" / name).glob("*.png"):
      x = zeroshot.framing(session.prepare, 16)(path)
      feature = np.asarray(session.model.encode_image(x[None])["global"])
      right.append(accuracy(feature, texts, np.array([i]))["top1"])
  assert result.figures["top1"] == pytest.approx(100 * np.mean(right))


def test_names_come_from_a_file_or_the_folders(tmp_path):
  classes = ["hot_dog", "cat"]
  assert zeroshot.names_of(tmp_path, classes) == ["hot dog", "cat"]
  (tmp_path / "names.txt").write_text("a sausage\na cat\n")
  assert zeroshot.names_of(tmp_path, classes) == ["a sausage", "a cat"]
  (tmp_path / "names.txt").write_text("one\n")
  with pytest.raises(LayoutError, match="has 1 names for 2 folders"):
    zeroshot.names_of(tmp_path, classes)


def test_imagenets_folders_have_clips_names(tmp_path):
  assert zeroshot.names_of(tmp_path, [f"n{i:08}" for i in range(1000)]) == list(imagenet_names())


def test_damaged_images_are_left_out_and_named(text_session, captioned, tmp_path):
  data = tmp_path / "data"
  shutil.copytree(captioned, data)
  (data / "val" / "red" / "x.png").write_bytes(b"no image")
  session = text_session(data, size=16)
  assert zeroshot.run(session).protocol["images"] == 12
  assert [name.split("/")[-1] for name in session.left_out] == ["x.png"]
  for path in (data / "val").glob("*/*.png"):
    path.write_bytes(b"no image")
  with pytest.raises(ValueError, match="none of the 13 images can be read"):
    zeroshot.run(session)


def test_a_missing_layout_is_told(text_session, tmp_path):
  Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
  with pytest.raises(LayoutError, match="has no val"):
    zeroshot.run(text_session(tmp_path))
