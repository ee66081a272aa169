import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3_jax.weights import checksums

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "float16", "bfloat16", "float8_e4m3fn",
          "int32", "uint32", "float32"]
WIDE = ["int64", "uint64", "float64"]


def dtype_of(name):
  return np.dtype(getattr(ml_dtypes, name, name))


def random_array(name, shape, seed=0):
  """Any bits that the dtype can have."""
  dtype = dtype_of(name)
  count = int(np.prod(shape, dtype=int))
  rng = np.random.default_rng(seed)
  if name == "bool":
    return rng.integers(0, 2, shape).astype(bool)
  data = rng.integers(0, 256, count * dtype.itemsize, np.uint8)
  return data.view(dtype).reshape(shape)


def flipped(array, element, bit):
  """The array with one bit of one element changed."""
  array = array.copy()
  if array.dtype == bool:
    array.flat[element] ^= True
    return array
  words = array.reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize)
  words[element, bit // 8] ^= np.uint8(1 << bit % 8)
  return array


def total(array):
  sums, _ = checksums.of_arrays({"x": array})
  return sums["x"]


@pytest.mark.parametrize("name", DTYPES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), element=st.integers(0, 34), bit=st.integers(0, 63))
def test_any_bit_of_any_element_changes_the_sum(name, seed, element, bit):
  array = random_array(name, (5, 7), seed)
  other = flipped(array, element, bit % (8 * array.dtype.itemsize))
  assert total(array) == total(array.copy()) != total(other)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("x64", [False, True])
def test_any_bit_of_eight_bytes_changes_the_sum(name, x64):
  with jax.enable_x64(x64):
    array = random_array(name, (3, 4))
    sums = {total(flipped(array, element, bit)) for element in (0, 5, 11) for bit in range(64)}
    assert len(sums) == 3 * 64 and total(array) not in sums


@settings(max_examples=20, deadline=None)
@given(a=st.integers(0, 34), b=st.integers(0, 34), seed=st.integers(0, 100))
def test_the_order_of_elements_matters(a, b, seed):
  array = np.random.default_rng(seed).permutation(35).astype(np.float32)
  other = array.copy()
  other[[a, b]] = other[[b, a]]
  assert (total(array) == total(other)) == (a == b)


@pytest.mark.parametrize("name", ["bool", "int8", "bfloat16", "float32"])
def test_an_array_of_one_value_knows_where_another_stands(name):
  """As in a mask, a bias or a count, where all else is alike."""
  sums = set()
  for element in range(64):
    array = np.zeros(64, dtype_of(name))
    array[element] = 1
    sums.add(total(array))
  assert len(sums) == 64


@pytest.mark.parametrize("name", ["bool", "int8", "bfloat16", "uint32", "float32"])
@pytest.mark.parametrize("spec", [P(), P("a"), P("b"), P(None, "a"), P("a", "b"), P(("a", "b")),
                                  P(("b", "a")), P(None, ("a", "b"))], ids=str)
def test_the_layout_does_not_matter(name, spec):
  mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
  array = random_array(name, (8, 16))
  placed = jax.device_put(array, NamedSharding(mesh, spec))
  assert total(placed) == total(array) == total(jax.device_put(array, jax.devices()[3]))


def test_the_layout_does_not_matter_to_a_whole_tree():
  mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
  tree = {"step": np.int32(3), "blocks": {"kernel": random_array("float32", (16, 3)),
                                          "bias": random_array("bfloat16", (8,))}}
  layout = {"step": P(), "blocks": {"kernel": P("a"), "bias": P("a")}}
  placed = jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, layout)
  assert checksums.of_arrays(placed) == checksums.of_arrays(tree)
  assert set(checksums.of_arrays(tree)[0]) == {"step", "blocks/kernel", "blocks/bias"}


@pytest.mark.parametrize("name", DTYPES)
def test_scalars_and_arrays_of_nothing(name):
  one, other = random_array(name, ()), flipped(random_array(name, (1,)), 0, 3)[0]
  assert total(one) != total(other)
  assert total(np.zeros((0, 4), dtype_of(name))) == "0" * 16
  assert checksums.of_arrays({"x": np.zeros((0,), dtype_of(name))})[1] == []


def test_a_tree_of_nothing():
  assert checksums.of_arrays({}) == ({}, [])
  assert checksums.of_arrays({"gram_teacher": None}) == ({}, [])


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_bits_count_not_values(name):
  """Zeros of either sign are equal, and NaNs never are."""
  dtype = dtype_of(name)
  assert total(np.array([0.0], dtype)) != total(np.array([-0.0], dtype))
  unsigned = np.dtype(f"uint{8 * dtype.itemsize}")
  quiet = np.array([np.nan], dtype)
  assert total(quiet) == total(quiet.copy())
  payload = (quiet.view(unsigned) | unsigned.type(1)).view(dtype)
  assert np.isnan(payload.astype(np.float32))[0] and total(payload) != total(quiet)
  smallest = np.array([1], unsigned).view(dtype)  # a subnormal, which some devices flush to zero
  assert total(smallest) != total(np.array([0.0], dtype))


def test_what_is_not_finite_is_named():
  tree = {"a": jnp.ones(3), "b": jnp.array([1.0, jnp.inf]), "c": {"d": jnp.array(jnp.nan)},
          "e": jnp.arange(3), "f": jnp.array([True]), "g": jnp.bfloat16(-jnp.inf),
          "h": jnp.float16(6e4)}
  sums, infinite = checksums.of_arrays(tree)
  assert infinite == ["b", "c/d", "g"]
  assert list(sums) == ["a", "b", "c/d", "e", "f", "g", "h"]


def test_sums_are_sixteen_digits_that_do_not_change_from_version_to_version():
  """Those of old checkpoints are held against what new versions compute."""
  tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False]),
          "c": np.arange(4, dtype=np.int8), "d": np.float32(0.5)}
  assert checksums.of_arrays(tree)[0] == {
    "a": "70deab948c1ad5ef", "b": "634b2ba261a29212", "c": "67c14dc151ca280e",
    "d": "a1cd9c27c424508e"}


def words_of(array):
  """What is documented, in Python's integers: elements' bits in row-major order."""
  if array.dtype == bool:
    return [int(x) for x in array.flat]
  size = min(array.dtype.itemsize, 4)
  return array.reshape(-1).view(f"uint{8 * size}").tolist()


def mix(x):
  x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
  x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
  return x ^ x >> 16


@pytest.mark.parametrize("name", DTYPES)
def test_sums_are_those_of_the_definition(name):
  array = random_array(name, (4, 5))
  first = second = 0
  for index, word in enumerate(words_of(array)):
    mixed = mix(word ^ index * 0x9E3779B1 % 2**32)
    first += mixed
    second += mix((mixed + index) % 2**32)
  assert total(array) == f"{first % 2**32:08x}{second % 2**32:08x}"


def test_json_does_not_tell_what_json_does_not_keep():
  same = checksums.of_json({"a": (1, 2.5, None), "b": {"c": "x", "d": True}})
  assert same == checksums.of_json({"b": {"d": True, "c": "x"}, "a": [1, 2.5, None]})
  assert checksums.of_json({1: "x"}) == checksums.of_json({"1": "x"})


@pytest.mark.parametrize("a, b", [
  ([1, 2], [2, 1]), (1, 1.5), (1, "1"), (True, "true"), (None, "null"), ({}, []),
  ([[1], 2], [1, 2]), ({"a": 1}, {"b": 1}), ({"a": None}, {}), ("", " ")])
def test_json_that_differs_has_another_sum(a, b):
  assert checksums.of_json(a) != checksums.of_json(b)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3)))
@settings(max_examples=25, deadline=None)
def test_json_of_any_kind_has_a_sum_that_lasts(content):
  """What was read back from a file has the sum of what was written."""
  sum = checksums.of_json(content)
  assert sum == checksums.of_json(json.loads(json.dumps(content))) and len(sum) == 16


def test_what_json_cannot_hold_is_an_error():
  with pytest.raises(TypeError):
    checksums.of_json({"a": np.zeros(2)})
