"""What the tests of evaluations share."""

import functools
import json
import pathlib

import pytest

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "evals"


@pytest.fixture(scope="session")
def recorded():
  """`recorded(name)`: what golden/evals/NAME.json holds."""
  return functools.cache(lambda name: json.loads((GOLDEN / f"{name}.json").read_text()))
