"""Recall of captions and images on COCO's and Karpathy's layouts."""

import json
import shutil

import pytest

from dinov3_jax.evals.session import LayoutError
from dinov3_jax.evals.tasks import retrieval_text


@pytest.fixture
def karpathy(tmp_path, captioned):
  images = []
  for i, path in enumerate(sorted((captioned / "val").glob("*/*.png"))):
    (tmp_path / "images").mkdir(exist_ok=True)
    shutil.copy(path, tmp_path / "images" / f"{i}.png")
    images.append(dict(filename=f"{i}.png", split="test", sentences=[
      dict(raw=f"{path.parent.name} {n}") for n in range(7)]))
  (tmp_path / "dataset_flickr30k.json").write_text(json.dumps(dict(images=images)))
  return tmp_path


def test_recall_both_ways(text_session, karpathy):
  result = retrieval_text.run(text_session(karpathy, batch_size=5))
  assert result.protocol == dict(size=16, split="test", images=12, captions=60)
  assert list(result.figures) == [f"{way} R@{k}" for way in ("image to text", "text to image")
                                  for k in (1, 5, 10)]
  for way in ("image to text", "text to image"):
    values = [result.figures[f"{way} R@{k}"] for k in (1, 5, 10)]
    assert 0 <= values[0] <= values[1] <= values[2] <= 100
  assert result.paper == {}  # the paper's figures are of COCO's 5,000 images


def test_some_images(text_session, karpathy):
  result = retrieval_text.run(text_session(karpathy, limit=4))
  assert result.protocol["images"] == 4 and "4 images" in result.differs


def test_a_missing_layout_is_told(text_session, captioned):
  with pytest.raises(LayoutError, match="wanted is"):
    retrieval_text.run(text_session(captioned))
