import json
import re

import chex
import numpy as np
import pytest
from safetensors.numpy import save_file

from dinov3_jax.weights import safetensors_file

ENTRY = {"a": dict(dtype="F32", shape=[2], data_offsets=[0, 8])}


def write(path, header, data=bytes(8), length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
  return path


def test_every_dtype_comes_as_a_view_of_the_file(tmp_path):
  arrays = {name: np.arange(6).reshape(2, 3).astype(dtype)
            for name, dtype in safetensors_file.DTYPES.items()}
  arrays |= dict(nothing=np.zeros((1, 0, 4), "f4"), scalar=np.full((), 3, "f4"))
  save_file(arrays, tmp_path / "w.safetensors", {"format": "pt"})
  found = safetensors_file.read(tmp_path / "w.safetensors")
  chex.assert_trees_all_equal(found, arrays)
  chex.assert_trees_all_equal_dtypes(found, arrays)
  assert not any(x.flags.owndata or x.flags.writeable for x in found.values() if x.size)


def test_a_file_without_arrays(tmp_path):
  save_file({}, tmp_path / "w.safetensors")
  assert safetensors_file.read(tmp_path / "w.safetensors") == {}


@pytest.mark.parametrize("changes", [
    dict(length=2**60), dict(length=2**64 - 1), dict(length=10**6), dict(length=3), dict(length=0),
    dict(header=b"{" * 40), dict(header=b"[]"), dict(header=b"null"), dict(header=b'{"a": 1}'),
    dict(header=b'{"a":' * 20_000 + b"1" + b"}" * 20_000), dict(header=b"[" * 20_000),
    dict(header={"a": dict(ENTRY["a"], data_offsets=[0, 12], shape=[3])}),
    dict(header={"a": dict(ENTRY["a"], data_offsets=[8, 0])}),
    dict(header={"a": dict(ENTRY["a"], data_offsets=[-8, 0])}),
    dict(header={"a": dict(ENTRY["a"], data_offsets=[2**63, 2**63 + 8])}),
    dict(header={"a": dict(ENTRY["a"], shape=[3])}),
    dict(header={"a": dict(ENTRY["a"], shape=[2**62, 2**62])}),
    dict(header={"a": dict(ENTRY["a"], shape=[-2])}),
    dict(header={"a": dict(ENTRY["a"], dtype="F31")}),
    dict(header={**ENTRY, "b": ENTRY["a"]}),  # two arrays in one place
    dict(header=ENTRY, data=bytes(7)), dict(header=ENTRY, data=bytes(9)),
    dict(header={"a": dict(dtype="F32", shape=[2**63, 2**40, 0], data_offsets=[0, 0])}, data=b""),
])
def test_damaged_files(tmp_path, changes):
  path = write(tmp_path / "w.safetensors", **{"header": ENTRY} | changes)
  with pytest.raises(ValueError, match=re.escape(str(path)) + " is .*: download it again$") as e:
    safetensors_file.read(path)
  assert "\n" not in str(e.value)


def test_wherever_it_is_cut(tmp_path):
  path = tmp_path / "w.safetensors"
  save_file({"a": np.ones((3, 4), "f4"), "b": np.zeros(5, "f2")}, path)
  content = path.read_bytes()
  for length in range(len(content)):
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match="is empty" if not length else "is cut off"):
      safetensors_file.read(path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_dtypes_that_are_not_supported(tmp_path, dtype):
  header = {"blocks.0.w": dict(dtype=dtype, shape=[8], data_offsets=[0, 8])}
  path = write(tmp_path / "w.safetensors", header)
  with pytest.raises(ValueError, match=f"blocks.0.w is of dtype {dtype}, which is not supported: "
                                       "convert the file to float32"):
    safetensors_file.read(path)


def test_other_files_under_the_name(tmp_path):
  (tmp_path / "w.safetensors").write_text("<!doctype html>")
  with pytest.raises(ValueError, match="is a web page"):
    safetensors_file.read(tmp_path / "w.safetensors")
