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
