import logging

import numpy as np
import pytest

from dinov3_jax.data.pairs.base import pair


class Images:
  """Four images, the last without a label."""

  labels, classes = np.array([0, 1, 0, -1]), ["a", "b"]

  def __len__(self):
    return 4

  def __getitem__(self, index):
    return {"image": np.full((2, 2, 3), index, np.uint8), "label": int(self.labels[index]),
            "name": str(index)}


def test_images_without_a_caption_are_left_out_and_counted(caplog):
  caplog.set_level(logging.INFO)
  pairs = pair(Images(), [["one"], [], ["two", "three", ""], [None]], "drawings")
  assert len(pairs) == 2 and pairs.labels.tolist() == [0, 0] and pairs.classes == ["a", "b"]
  assert pairs[1]["captions"] == ["two", "three"] and pairs[1]["name"] == "2"
  assert "left out 1 captions that are no text, 1 empty captions, 2 images without a caption" in (
    caplog.text)
  assert "drawings: 2 images with 3 captions" in caplog.text


def test_no_caption_at_all_is_an_error():
  with pytest.raises(ValueError, match=r"no image of drawings has a caption \(1 empty captions, "
                                       r"4 images without a caption\)"):
    pair(Images(), [[""], [], [], []], "drawings")


def test_what_was_left_out_before_is_told_too(caplog):
  pair(Images(), [["x"]] * 4, "drawings", {"captions without an image": 3})
  assert "left out 3 captions without an image" in caplog.text
