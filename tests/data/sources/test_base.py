"""Every source keeps the protocol."""

import pickle

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.data.sources import open_source


@pytest.fixture(params=["folder", "openmoji:base"])
def source(request, tmp_path):
  for i in range(40):
    path = tmp_path / "ab"[i % 2] / f"{i}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (6, 5), (i, 0, 0)).save(path)
  return open_source(tmp_path if request.param == "folder" else request.param, "train")


def test_items(source):
  again = pickle.loads(pickle.dumps(source))
  assert len(again) == len(source) > 0 and again.classes == source.classes
  for i in (0, len(source) - 1):
    item, other = source[i], again[i]
    assert set(item) == {"image", "label", "name"}
    assert item["image"].dtype == np.uint8 and item["image"].shape[2:] == (3,)
    np.testing.assert_array_equal(item["image"], other["image"])
    assert item["label"] == source.labels[i] and -1 <= item["label"] < len(source.classes)
    assert isinstance(item["name"], str) and item["name"] == other["name"]
