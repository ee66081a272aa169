import re

import chex
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from dinov3_jax.weights import files


def test_every_dtype_comes_as_a_view_of_the_file(tmp_path):
  arrays = {name: np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in files.DTYPES.items()}
  save_file(arrays, tmp_path / "model.safetensors")
  for path in (tmp_path, tmp_path / "model.safetensors"):
    found = files.open_arrays(path)
    chex.assert_trees_all_equal(found, arrays)
    chex.assert_trees_all_equal_dtypes(found, arrays)
    assert not any(x.flags.owndata or x.flags.writeable for x in found.values())


def test_bfloat16_of_pytorch_keeps_its_bits(tmp_path):
  torch = pytest.importorskip("torch")
  values = torch.linspace(-3, 3, 7)
  torch.save({"teacher": {"a": values.bfloat16(), "b": values}}, tmp_path / "w.pth")
  found = files.open_arrays(tmp_path)
  expected = dict(a=values.numpy().astype(ml_dtypes.bfloat16), b=values.numpy())
  chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize("names, said", [
  ([], "holds no model.safetensors, and no .pth files"), (["a.pth", "b.pt"], "and 2 .pth files")])
def test_a_folder_must_have_one_model(tmp_path, names, said):
  for name in names:
    (tmp_path / name).touch()
  with pytest.raises(FileNotFoundError, match=re.escape(said)):
    files.find(tmp_path)
