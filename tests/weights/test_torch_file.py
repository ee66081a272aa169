import argparse
import os
import pathlib
import pickle
import re
import sys
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest

from dinov3_jax.weights import torch_file

torch = pytest.importorskip("torch")


@pytest.fixture
def path(tmp_path):
  return tmp_path / "w.pth"


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_is_read(path, is_zip):
  content = {"model": {"a": torch.arange(3.0)}, "args": argparse.Namespace(lr=1e-3), "epoch": 3}
  torch.save(content, path, _use_new_zipfile_serialization=is_zip)
  found = torch_file.read(path)
  assert found["epoch"] == 3 and found["args"].lr == 1e-3
  np.testing.assert_array_equal(found["model"]["a"].numpy(), [0, 1, 2])


class Harmful:
  """A pickle of it runs a command when it is loaded as pickles are."""

  def __reduce__(self):
    return os.system, ("touch harm",)


@pytest.mark.parametrize("make", [
    lambda path: torch.save({"a": torch.zeros(2), "b": Harmful()}, path),
    lambda path: torch.save(torch.nn.Linear(2, 2), path),
    lambda path: torch.save({"hyper_parameters": pathlib.PurePosixPath("x")}, path),
    lambda path: path.write_bytes(pickle.dumps({"b": Harmful()}, 2)),
])
@pytest.mark.filterwarnings("ignore")
def test_code_is_refused(path, make, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  make(path)
  with pytest.raises(ValueError, match=re.escape(str(path))) as error:
    torch_file.read(path)
  message = str(error.value)
  assert "\n" not in message and "weights_only" not in message
  assert not (tmp_path / "harm").exists()


def test_what_is_refused_is_named(path):
  torch.save({"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": Harmful()}, path)
  with pytest.raises(ValueError, match=r"w\.pth holds more than arrays \((posix|nt)\.system\), wh"
                                       r"ich could run code and is refused: .*_dict\(\) alone$"):
    torch_file.read(path)


@pytest.mark.parametrize("content, said", [
    (b"", "is empty"), (b"<!DOCTYPE html>", "is a web page"), (b"x", "is no file of PyTorch"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    (b'{"error": "gone"}', "is no file of PyTorch"), (b"\x80\x02", "is damaged or cut off"),
    (b"PK\3\4" + bytes(50), "is cut off: download it again"),
    (pickle.dumps([1, 2], 5), "is damaged or cut off")])
def test_other_files_under_the_name(path, content, said):
  path.write_bytes(content)
  with pytest.raises(ValueError, match=re.escape(f"{path} {said}")) as error:
    torch_file.read(path)
  assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


@pytest.mark.parametrize("is_zip", [True, False])
def test_wherever_it_is_cut(path, is_zip):
  torch.save({"a": torch.ones(30), "b": torch.zeros(2, 3)}, path,
             _use_new_zipfile_serialization=is_zip)
  content = path.read_bytes()
  for length in {*range(1, 40), *range(40, len(content), 53), len(content) - 1}:
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match=r"w\.pth is (cut off|damaged or cut|no file of PyTorch)"):
      torch_file.read(path)


def test_a_damaged_directory(path):
  """Of the zip archive, at its end: each byte changed raises what is documented, or nothing."""
  torch.save({"a": torch.ones(30), "b": torch.zeros(2, 3)}, path)
  content = path.read_bytes()
  failed = 0
  for at in range(1, 160):
    for change in (1, 128):
      data = bytearray(content)
      data[-at] ^= change
      path.write_bytes(data)
      try:
        torch_file.read(path)
      except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        failed += 1
  assert failed > 20


def test_archives_of_another_kind(path):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("photo.txt", "x")
  with pytest.raises(ValueError, match="is a zip archive, but not one of PyTorch's: unpack it"):
    torch_file.read(path)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("w/data.pkl", bytes(10**6))
  with pytest.raises(ValueError, match="is a compressed archive, which is not PyTorch's"):
    torch_file.read(path)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyTorch would rather have another format
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
  with pytest.raises(ValueError, match=r"is a TorchScript program, not weights: save its state_d"):
    torch_file.read(path)


def test_tensors_as_views():
  values = torch.linspace(-3, 3, 6).reshape(2, 3)
  np.testing.assert_array_equal(torch_file.as_numpy("a", values.T), values.numpy().T)
  half = torch_file.as_numpy("a", torch.nn.Parameter(values.bfloat16()))
  np.testing.assert_array_equal(half, values.numpy().astype(ml_dtypes.bfloat16))
  assert np.shares_memory(torch_file.as_numpy("a", values), values.numpy())
  few = torch.zeros(1).expand(1000)
  assert torch_file.as_numpy("a", few).shape == (1000,)


@pytest.mark.parametrize("make, said", [
    (lambda: torch.eye(3).to_sparse(), "norm is a sparse, quantized or empty tensor"),
    (lambda: torch.zeros(3, device="meta"), "norm is a sparse, quantized or empty tensor"),
    (lambda: torch.zeros(3).to(torch.float8_e4m3fn), "norm is of torch.float8_e4m3fn, which"),
    (lambda: torch.zeros(1).expand(10**9, 10**3), "norm repeats its elements to [1000000000,"),
])
def test_tensors_that_are_no_plain_arrays(make, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    torch_file.as_numpy("norm", make())


def test_without_pytorch(path, monkeypatch):
  path.write_bytes(b"x")
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ModuleNotFoundError, match=r"only PyTorch can read w\.pth: pip install torch"):
    torch_file.read(path)


def test_names():
  assert [torch_file.is_torch(f"a{x}") for x in (".pth", ".pt", ".bin", ".ckpt", ".npz")] == [
      True, True, True, True, False]
