"""Met as it lies on disk."""

import json

import numpy as np
import pytest
from PIL import Image

from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import artworks


@pytest.fixture
def data(tmp_path):
  """Six works of noise, each seen three times; queries are noisy copies; two are of no work."""
  rng = np.random.default_rng(0)
  works = rng.integers(0, 256, (8, 24, 24, 3))
  (tmp_path / "images").mkdir()
  (tmp_path / "ground_truth").mkdir()

  def write(name, kind, copies, distractors):
    entries = []
    for i in range(8 if distractors else 6):
      for j in range(copies):
        image = np.clip(works[i] + rng.integers(-4, 5, (24, 24, 3)), 0, 255).astype(np.uint8)
        path = f"{kind}_{i}_{j}.png"
        Image.fromarray(image).save(tmp_path / "images" / path)
        known = {"id" if "database" in name else "MET_id": 100 + i} if i < 6 else {}
        entries.append(dict(path=path) | known)
    (tmp_path / "ground_truth" / f"{name}.json").write_text(json.dumps(entries))

  write("mini_MET_database", "train", 3, False)
  write("valset", "val", 1, True)
  write("testset", "test", 1, True)
  return tmp_path


def test_copies_are_recognised(session_of, data, monkeypatch):
  monkeypatch.setattr(artworks, "DIMS", 5)  # six works span no more; whitening enlarges the noise
  result = artworks.run(session_of(data, size=24))
  assert result.figures["accuracy"] == result.figures["GAP-"] == 100
  assert result.figures["GAP"] > 70  # distractors may come between
  assert result.protocol["train"] == 18 and result.protocol["test"] == 8
  assert "the small database, mini_MET_database" in result.differs


def test_distractors_have_no_work(session_of, data):
  images, ids = artworks.read_list(session_of(data), "testset")
  assert len(images) == 8 and sorted(ids)[:3] == [-1, -1, 100]


def test_rank():
  x = np.random.default_rng(0).standard_normal((20, 3)) @ np.ones((3, 6))
  assert artworks.rank(x) == 1
  assert artworks.rank(np.random.default_rng(0).standard_normal((5, 9))) == 4


def test_layouts(session_of, data):
  with pytest.raises(LayoutError, match=r"has no ground_truth/mini_MET_database.json"):
    artworks.run(session_of("DAVIS", size=16))
  (data / "images" / "val_0_0.png").unlink()
  with pytest.raises(LayoutError, match=r"val_0_0.png is in valset.json, but it is not there"):
    artworks.read_list(session_of(data), "valset")
  (data / "ground_truth" / "valset.json").write_text("[1]")
  with pytest.raises(LayoutError, match=r"valset.json is no list of Met's images"):
    artworks.read_list(session_of(data), "valset")
