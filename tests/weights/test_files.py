import json
import re

import chex
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from dinov3_jax.weights import files


def test_bfloat16_of_pytorch_keeps_its_bits(tmp_path):
  torch = pytest.importorskip("torch")
  values = torch.linspace(-3, 3, 7)
  torch.save({"teacher": {"a": values.bfloat16(), "b": values}}, tmp_path / "w.pth")
  found = files.open_arrays(tmp_path)
  expected = dict(a=values.numpy().astype(ml_dtypes.bfloat16), b=values.numpy())
  chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize("names, said", [
    ([], "holds no model.safetensors, and no other files of weights: give the file itself"),
    (["a.pth", "b.pt"], "and 2 other files of weights (a.pth, b.pt): give the file itself"),
    (["a.npz"], "and no other files of weights")])
def test_a_folder_must_have_one_model(tmp_path, names, said):
  for name in names:
    (tmp_path / name).touch()
  with pytest.raises(FileNotFoundError, match=re.escape(said)):
    files.find(tmp_path)


def test_the_best_of_a_folder(tmp_path):
  """Names of Hugging Face first, safetensors before PyTorch; of other names only a single file."""
  (tmp_path / "any.ckpt").touch()
  assert files.find(tmp_path).name == "any.ckpt"
  for name in reversed(files.NAMES):
    (tmp_path / name).touch()
    assert files.find(tmp_path).name == name
  assert files.find(str(tmp_path / "any.ckpt")).name == "any.ckpt"
  with pytest.raises(FileNotFoundError, match="there is no file or folder"):
    files.find(tmp_path / "absent")


def write_index(folder, name, places):
  (folder / name).write_text(json.dumps(dict(metadata={}, weight_map=places)))


def test_pytorch_files_with_an_index(tmp_path):
  torch = pytest.importorskip("torch")
  for name in "ab":
    torch.save({f"model.{name}": torch.ones(2)}, tmp_path / f"{name}.bin")
  write_index(tmp_path, "pytorch_model.bin.index.json", {"model.a": "a.bin", "model.b": "b.bin"})
  assert set(files.open_arrays(tmp_path)) == {"a", "b"}


@pytest.mark.parametrize("name", ["../w.safetensors", "/w.safetensors", "a/../../w.safetensors",
                                  "..\\w.safetensors", "C:\\w.safetensors", "C:w.safetensors"])
def test_files_outside_of_the_folder_are_refused(tmp_path, name):
  (tmp_path / "model").mkdir()
  save_file({"x": np.ones(2)}, tmp_path / "w.safetensors")
  if name.startswith("/"):
    name = str(tmp_path) + name
  write_index(tmp_path / "model", files.INDEX, {"x": name})
  with pytest.raises(ValueError, match="which is not in its folder, and is refused"):
    files.open_arrays(tmp_path / "model")


def test_an_index_that_is_none(tmp_path):
  for content in ("{}", '{"weight_map": []}', '{"weight_map": {"x": 3}}'):
    (tmp_path / files.INDEX).write_text(content)
    with pytest.raises(ValueError, match="has no weight_map from arrays to files"):
      files.open_arrays(tmp_path)
  for content in ("", "<html>", "[1]", "{"):
    (tmp_path / files.INDEX).write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / files.INDEX))):
      files.open_arrays(tmp_path)
  write_index(tmp_path, files.INDEX, {"x": files.INDEX})
  with pytest.raises(ValueError, match="which is no file of weights"):
    files.open_arrays(tmp_path)


def test_a_file_below_the_folder(tmp_path):
  (tmp_path / "parts").mkdir()
  save_file({"x": np.ones(2)}, tmp_path / "parts" / "w.safetensors")
  write_index(tmp_path, files.INDEX, {"x": "parts/w.safetensors"})
  np.testing.assert_array_equal(files.open_arrays(tmp_path)["x"], [1, 1])


def test_the_file_is_named(tmp_path):
  save_file({"optimizer.x": np.ones(2), "dino_head.x": np.ones(2)}, tmp_path / "w.safetensors")
  assert set(files.open_arrays(tmp_path / "w.safetensors")) == {"optimizer.x"}
  save_file({"dino_head.x": np.ones(2)}, tmp_path / "w.safetensors")
  with pytest.raises(ValueError, match=r"w\.safetensors: holds heads alone, and no backbone"):
    files.open_arrays(tmp_path / "w.safetensors")
