import pickle

import pytest

from dinov3_jax.data.decode import DamagedImage
from dinov3_jax.data.pairs.files import Files


def test_images_in_the_order_of_their_names(tmp_path, save_image):
  for name in ("b", "c/a"):
    save_image(name)
  images = pickle.loads(pickle.dumps(Files(tmp_path, ["c/a.png", "b.png"])))
  assert len(images) == 2 and images.labels is None and images.classes is None
  assert images.paths() == ["c/a.png", "b.png"] and images.name(0) == "c/a.png"
  assert images.encoded(1) == (tmp_path / "b.png").read_bytes()
  first, second = images[0], images[1]
  assert (first["name"], second["name"], first["label"]) == ("c/a.png", "b.png", -1)
  assert first["image"].shape == (4, 5, 3)


def test_one_that_is_not_there_is_damaged(tmp_path):
  images = Files(tmp_path, ["gone.png"])
  for read in (images.__getitem__, images.encoded):
    with pytest.raises(DamagedImage, match=r"gone\.png"):
      read(0)
