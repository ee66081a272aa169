import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def save_image(tmp_path):
  """`save_image(name)`: a small image of a colour of its own below `tmp_path`."""

  def save(name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.frombuffer(name.encode().ljust(3)[-3:], np.uint8)
    Image.fromarray(np.broadcast_to(colour, (4, 5, 3))).save(path.with_suffix(".png"))

  return save
