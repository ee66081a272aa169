"""What the tests of evaluations share."""

import functools
import json
import pathlib

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.evals import mini
from dinov3_jax.evals.session import Session
from dinov3_jax.models.variants import build

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "evals"


@pytest.fixture(scope="session")
def recorded():
  """`recorded(name)`: what golden/evals/NAME.json holds."""
  return functools.cache(lambda name: json.loads((GOLDEN / f"{name}.json").read_text()))


class Shapes:
  """Drawings that need no package: discs, boxes and crosses in bright colours."""

  classes = ("boxes", "crosses", "discs")
  labels = np.arange(48) % 3

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    rng = np.random.default_rng(int(index))
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    shape = (np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y)) + 0.5, np.hypot(x, y))
    alpha = 255 * (shape[index % 3] < 0.8)
    colour = np.roll([230, *rng.integers(0, 90, 2)], int(rng.integers(3)))
    picture = np.concatenate([np.broadcast_to(colour, (64, 64, 3)), alpha[..., None]], 2)
    return Image.fromarray(picture.astype(np.uint8), "RGBA")


@pytest.fixture(scope="session")
def shapes():
  return Shapes()


def _write(folder, shapes, **sizes):
  for i, (name, own) in enumerate(sizes.items()):
    make, _ = mini.SETS[name.replace("_", "-")]
    make(folder / name.replace("_", "-"), shapes, np.random.default_rng(i), **own)
  return folder


@pytest.fixture(scope="session")
def mini_data(tmp_path_factory, shapes):
  """A folder with a small data set of every layout of images and masks."""
  return _write(tmp_path_factory.mktemp("mini"), shapes, folders=dict(train=8, val=4),
                VOC=dict(train=6, val=3, boxes=3), SPair_71k={}, DAVIS=dict(videos=2, frames=5),
                oxford=dict(queries=4, others=4), AmsterTime=dict(pairs=6),
                YouTube_VOS=dict(videos=2), MOSE=dict(videos=2, frames=5),
                NAVI=dict(objects=1, views=4), KITTI=dict(train=3, test=2),
                ImageNet=dict(classes=11, some=5, corrupted=2), Met=dict(works=8, queries=12),
                foreground=dict(count=3))


@pytest.fixture(scope="session")
def mini_clips(tmp_path_factory, shapes):
  """A folder with small data sets of videos."""
  pytest.importorskip("av", reason="videos need `pip install av`")
  return _write(tmp_path_factory.mktemp("clips"), shapes, clip=dict(frames=6),
                **{name: dict(train=9, val=3, frames=6) for name in ("SSv2", "K400", "UCF101")})


TINY = dict(width=32, depth=2, num_heads=2, patch_size=8, storage_tokens=1, layerscale=1.0)


@pytest.fixture(scope="session")
def tiny_model():
  """A ViT of width 32 with patches of 8 pixels."""
  return build(TINY, rngs=nnx.Rngs(0))


@pytest.fixture
def session_of(mini_data, tiny_model, tmp_path):
  """`session_of(data, **settings)`: a session on one of the small data sets, or on a folder."""
  return lambda data, cache=tmp_path / "cache", **settings: Session(
      tiny_model, Preprocess(), mini_data / data, cache, **settings)
