"""Drawings, backgrounds and label files."""

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals import mini_canvas


def test_label_files_have_a_palette(tmp_path):
  labels = np.arange(12).reshape(3, 4) % 5
  mini_canvas.save_labels(tmp_path / "new/a.png", labels)
  with Image.open(tmp_path / "new/a.png") as mask:
    assert mask.mode == "P"
    np.testing.assert_array_equal(np.asarray(mask), labels)


def test_a_drawing_lies_where_its_mask_is(shapes):
  image, alpha = mini_canvas.compose(mini_canvas.plain(90, 100), shapes[0], 30, 20)
  assert ((image < 250).any(-1) == (alpha > 127)).all()
  rows, columns = np.nonzero(alpha)
  assert rows.min() >= 20 and columns.min() >= 30
  turned = mini_canvas.place(shapes[0], 90, 0.5)
  assert turned.size == (32, 32)


def test_openmoji_is_the_default():
  drawings = mini_canvas.Drawings(side=32)
  assert drawings[0].size == (32, 32) and drawings[0].mode == "RGBA"
  assert len(drawings) == len(drawings.labels) and "animals" in drawings.classes
  with pytest.raises(IndexError):
    drawings[len(drawings)]
