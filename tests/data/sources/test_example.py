"""Examples: what TensorFlow's own description of them parses, and bytes that are none."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov3_jax.data.sources.example import parse, serialize

INTEGERS = st.integers(-(2**63), 2**63 - 1)


@given(st.dictionaries(st.text(min_size=1), st.binary() | INTEGERS, min_size=1))
def test_what_is_written_is_read(features):
  assert parse(serialize(features)) == {key: [value] for key, value in features.items()}


def test_agrees_with_the_protocol_buffer():
  proto = pytest.importorskip("tensorflow_datasets.core.proto.tf_example_pb2")
  example = proto.Example()
  example.features.feature["image"].bytes_list.value.extend([b"one", b"two"])
  example.features.feature["label"].int64_list.value.extend([5, -1, 2**40])
  example.features.feature["score"].float_list.value.extend([0.5])
  found = parse(example.SerializeToString())
  assert found == {"image": [b"one", b"two"], "label": [5, -1, 2**40], "score": []}
  back = proto.Example()
  back.ParseFromString(serialize({"image": b"x" * 300, "label": -3}))
  assert back.features.feature["image"].bytes_list.value[0] == b"x" * 300
  assert back.features.feature["label"].int64_list.value[0] == -3


@given(st.binary())
def test_other_bytes_are_errors_or_harmless(data):
  with contextlib.suppress(ValueError):
    assert all(isinstance(values, list) for values in parse(data).values())
