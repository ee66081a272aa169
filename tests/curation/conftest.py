"""Recorded clusterings and samplings, and the points that they are of."""

import functools
import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from dinov3_jax.curation.rows import make_mesh

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "curation"


@pytest.fixture(scope="session")
def inputs():
  """The module that makes the recordings' points."""
  spec = importlib.util.spec_from_file_location("curation_inputs", FOLDER / "inputs.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="session")
def record():
  """`record(name)`: the arrays of NAME.npz, or what NAME.json holds."""

  @functools.cache
  def load(name):
    path = FOLDER / f"{name}.npz"
    if not path.exists():
      return json.loads((FOLDER / f"{name}.json").read_text())
    with np.load(path) as arrays:
      return dict(arrays)

  return load


@pytest.fixture(scope="session", params=[1, 8], ids=["one device", "eight devices"])
def mesh(request):
  return make_mesh(jax.devices()[:request.param])


@pytest.fixture(scope="session")
def single():
  return make_mesh(jax.devices()[:1])


def make_store(folder, features, names=None, shard=150, source="pool"):
  """Features on disk, as `embed` leaves them."""
  from dinov3_jax.curation.store import Store
  store = Store.create(folder / "features", dict(
    source=source, split="all", items=len(features), shard_items=shard, dim=features.shape[1],
    model="m", preprocessing="p"))
  names = [f"{i}.jpg" for i in range(len(features))] if names is None else names
  for i in range(store.shards):
    items = list(store.items(i))
    store.write(i, features[items], items, [names[item] for item in items], {})
  return Store(store.folder)


@pytest.fixture(scope="session")
def stored():
  return make_store


@pytest.fixture
def curation(inputs, tmp_path):
  """A folder with 400 of the recorded points: the last ten repeat the first ones, one is NaN."""
  features = inputs.POOL[:400].copy()
  features[390:] = features[:10]
  features[20] = np.nan
  make_store(tmp_path / "c", features)
  return tmp_path / "c"
