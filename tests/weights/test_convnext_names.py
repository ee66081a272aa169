import chex
import numpy as np
import pytest

from dinov3_jax.weights import convnext_names as names

DEPTHS = (1, 2, 3, 1)


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  shapes = {"conv": (8, 3, 4, 4), "fc1": (32, 8), "fc2": (8, 32), "dwconv": (8, 1, 7, 7)}
  result = {}
  for name in names.names(DEPTHS):
    shape = shapes[name.path[-2]] if name.path[-1] == "kernel" else (8,)
    result[name.official] = rng.normal(size=shape).astype("f4")
  return result | {f"norms.3.{leaf}": result[f"norm.{leaf}"] for leaf in ("weight", "bias")}


def test_as_many_keys_as_the_reference():
  for depths, count in (((3, 3, 9, 3), 182), ((3, 3, 27, 3), 344)):
    assert len(names.names(depths)) + 2 == count


@pytest.mark.parametrize("naming", ["official", "huggingface"])
def test_round_trip_is_exact(arrays, naming):
  params = names.from_arrays(arrays, DEPTHS, "official")
  assert params["stages"]["2"]["dwconv"]["kernel"].shape == (3, 7, 7, 1, 8)
  assert params["stages"]["0"]["mlp"]["fc1"]["kernel"].shape == (1, 8, 32)
  assert params["downsample"]["1"]["conv"]["kernel"].shape == (4, 4, 3, 8)
  theirs = names.to_arrays(params, DEPTHS, naming)
  if naming == "official":
    chex.assert_trees_all_equal(theirs, arrays)
  chex.assert_trees_all_equal(names.from_arrays(theirs, DEPTHS, naming), params)


def test_order_of_stacked_blocks(arrays):
  params = names.from_arrays(arrays, DEPTHS, "official")
  np.testing.assert_array_equal(params["stages"]["2"]["ls"]["gamma"][1], arrays["stages.2.1.gamma"])
  np.testing.assert_array_equal(params["stages"]["2"]["mlp"]["fc2"]["kernel"][2],
                                arrays["stages.2.2.pwconv2.weight"].T)


def test_strict(arrays):
  del arrays["norm.bias"], arrays["stages.0.0.gamma"]
  arrays["extra"] = np.zeros(3)
  with pytest.raises(ValueError, match=r"missing \['norm.bias', 'stages.0.0.gamma'\], unknown "
                                       r"\['extra'\]"):
    names.from_arrays(arrays, DEPTHS, "official")


def test_the_second_copy_of_the_norm(arrays):
  params = names.from_arrays(arrays, DEPTHS, "official")
  short = {k: v for k, v in arrays.items() if not k.startswith("norms.")}
  chex.assert_trees_all_equal(names.from_arrays(short, DEPTHS, "official"), params)
  with pytest.raises(ValueError, match=r"norms\.3\.bias"):
    names.from_arrays(arrays | {"norms.3.bias": np.ones(8)}, DEPTHS, "official")
