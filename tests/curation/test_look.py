import shutil

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.curation import look as module
from dinov3_jax.curation import steps
from dinov3_jax.curation.hierarchy import Settings
from dinov3_jax.curation.look import look
from dinov3_jax.data.sources import DamagedImage


class Colours:
  """Images whose colour is their number."""

  labels = classes = None

  def __init__(self, count=400):
    self.count, self.asked = count, []

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    self.asked.append(index)
    if index == 3:
      raise DamagedImage("3.jpg", "gone")
    return dict(image=np.full((20, 40, 3), index // 2, np.uint8), label=-1, name=f"{index}.jpg")


def test_page(curation, single):
  steps.cluster(curation, [Settings(12, rounds=0, iterations=3), Settings(3, rounds=0)], single)
  steps.sample(curation, 30)
  steps.dedup(curation, single, threshold=0.99999)
  page = look(curation, Colours())
  text = page.read_text()
  titles = ["All 400 images", "clusters: largest of the 12 clusters of level 1",
            "clusters: smallest of", "clusters: random of", "sample: 30 images",
            "unique: duplicates, the largest groups", "unique: 390 images"]
  places = [text.index(title) for title in titles]
  assert places == sorted(places) and text.count("<img") == len(titles)
  for i in range(len(titles)):
    with Image.open(page.parent / f"{i:02}.jpg") as picture:
      assert picture.width == module.ACROSS * (module.SIDE + 4)
  assert "level 2" in look(curation, Colours(), name="look2", level=9).read_text()


def test_duplicates_stand_in_one_line(curation, single):
  steps.dedup(curation, single, threshold=0.99999)
  result = module.results.read_result(curation, "unique")
  source = Colours()
  pictures = module.Pictures(module.results.open_store(curation), source)
  (_, lines), _ = module._duplicate_sheets(curation, "unique", result, pictures, 1,
                                           np.random.default_rng(0))
  assert len(lines) == 10 and lines[0][0] == "2 alike, the first is kept"
  assert source.asked[:4] == [0, 390, 1, 391]


def test_results_of_features_that_are_gone_are_not_shown(curation, single, stored, inputs):
  steps.dedup(curation, single, threshold=0.99999)
  shutil.rmtree(curation / "features")
  stored(curation, inputs.POOL[:80])
  source = Colours(80)
  with pytest.raises(ValueError, match="unique is of features that are gone"):
    look(curation, source)
  assert not source.asked


def test_which_clusters_and_rows():
  rng = np.random.default_rng(0)
  chosen = module.shown_clusters(np.array([5, 0, 9, 1, 7, 0, 2, 3]), rng)
  assert chosen["largest"].tolist() == [2, 4, 0, 7, 6]
  assert chosen["smallest"].tolist() == [3, 6, 7, 0, 4]
  assert set(chosen["random"]) <= {0, 2, 3, 4, 6, 7}
  from dinov3_jax.curation.tree import Tree, make_level
  tree = Tree([make_level(np.array([0, 1, 0, 2]), np.array([3.0, 0, 1, 0]), 3),
               make_level(np.array([0, 0, 1]), np.zeros(3), 2)])
  assert module.rows_below(tree, 0, 0, 5, rng).tolist() == [2, 0]
  assert sorted(module.rows_below(tree, 1, 0, 5, rng).tolist()) == [0, 1, 2]


def test_another_source_is_an_error(curation):
  with pytest.raises(ValueError, match="pool has 399 images, and had 400 when"):
    look(curation, Colours(399))

  class Renamed(Colours):
    def __getitem__(self, index):
      return dict(super().__getitem__(4), name="other.jpg")

  with pytest.raises(ValueError, match=r"pool has other\.jpg where"):
    look(curation, Renamed())


def test_sheet():
  red, blue = (Image.new("RGB", (module.SIDE, module.SIDE), c) for c in ("red", "blue"))
  canvas = module.sheet([("reds", [red] * 11), ("blue", [blue])])
  assert canvas.height == 2 * 18 + 3 * (module.SIDE + 4)
  assert canvas.getpixel((50, 18 + 50)) == canvas.getpixel((50, 18 + 150)) == (255, 0, 0)
  assert canvas.getpixel((150, 18 + 150)) == (255, 255, 255)
  assert canvas.getpixel((50, 2 * 18 + 250)) == (0, 0, 255)
