"""Files of weights as they come out of the world: damaged, misnamed, hostile; seen by a user."""

import json
import os
import shutil
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

import dinov3_jax
from dinov3_jax import export, features
from dinov3_jax.evals.backbone import open_model
from dinov3_jax.models.variants import VARIANTS, Variant, build
from dinov3_jax.weights import huggingface, naming

SETTINGS = dict(width=8, depth=2, num_heads=2, patch_size=2, storage_tokens=1, mask_k_bias=True,
                norm_eps=1e-5, rope=dict(base=100.0))
KINDS = ("official.safetensors", "hf/model.safetensors", "hf/config.json", "ours/config.json",
         "shards/model.safetensors.index.json", "shards/1.safetensors", "zip.pth", "old.pth",
         "wrapped.ckpt")
EXPECTED = (ValueError, FileNotFoundError, PermissionError, ModuleNotFoundError)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
  """A folder with a small valid file of every kind."""
  torch = pytest.importorskip("torch")
  folder = tmp_path_factory.mktemp("valid")
  shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: build(SETTINGS, rngs=nnx.Rngs(0)))))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), shapes)
  params["blocks"]["attn"]["qkv"]["bias"][:, 1] = 0
  official = naming.flatten(params) | naming.buffers(SETTINGS)
  for name in ("hf", "ours", "shards"):
    (folder / name).mkdir()
  save_file(official, folder / "official.safetensors")
  save_file(naming.flatten(params, "huggingface", True), folder / "hf" / "model.safetensors")
  (folder / "hf" / "config.json").write_text(json.dumps(huggingface.config(SETTINGS)))
  shutil.copy(folder / "official.safetensors", folder / "ours" / "model.safetensors")
  (folder / "ours" / "config.json").write_text(json.dumps({"dinov3_jax": SETTINGS}))
  names = sorted(official)
  places = {name: f"{i % 2}.safetensors" for i, name in enumerate(names)}
  for i in range(2):
    save_file({name: official[name] for name in names[i::2]}, folder / "shards" /
              f"{i}.safetensors")
  (folder / "shards" / "model.safetensors.index.json").write_text(
      json.dumps(dict(weight_map=places)))
  tensors = {name: torch.tensor(x) for name, x in official.items()}
  torch.save(tensors, folder / "zip.pth")
  torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
  torch.save({"epoch": 3, "state_dict": {f"model.{k}": x for k, x in tensors.items()}},
             folder / "wrapped.ckpt")
  return folder


@pytest.fixture(scope="module", autouse=True)
def one_variant():
  """The table with this model alone: nothing is to be found by being slow."""
  with pytest.MonkeyPatch.context() as patch:
    for name in list(VARIANTS):
      patch.delitem(VARIANTS, name)
    patch.setitem(VARIANTS, "vits16", Variant(SETTINGS, {}))
    yield


def what_to_load(folder, kind):
  return folder / kind if "/" not in kind else folder / kind.split("/")[0]


def attempt(path):
  """Loads; asserts that what cannot be loaded is said in one line that names the file."""
  try:
    dinov3_jax.load(None, path)
    return "loaded"
  except EXPECTED as error:
    message = str(error)
    assert "\n" not in message and "weights_only" not in message, message
    assert path.name in message, message
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_valid_undamaged(valid, kind):
  assert attempt(what_to_load(valid, kind)) == "loaded"


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_said_in_one_line(valid, tmp_path, kind):
  """Cut anywhere, bytes changed near either end (where headers and directories are), zeroed."""
  content = (valid / kind).read_bytes()
  work = tmp_path / "work"
  shutil.copytree(valid, work)
  seen = set()

  @hypothesis_settings(max_examples=60, deadline=None, derandomize=True, database=None,
                       suppress_health_check=list(HealthCheck))
  @given(st.sampled_from(["cut", "flip", "zero"]), st.floats(0, 1), st.integers(1, 255),
         st.booleans())
  @example("cut", 0.0, 1, False)
  @example("zero", 0.0, 255, False)
  def damage(how, place, value, at_end):
    data = bytearray(content)
    if how == "cut":
      data = data[:int(place * (len(data) - 1))]
    else:
      span = min(len(data), 1500)
      at = int(place * (span - 1)) + (len(data) - span if at_end else 0)
      if how == "flip":
        data[at] ^= value
      else:
        data[at:at + value] = bytes(len(data[at:at + value]))
    (work / kind).write_bytes(data)
    seen.add(attempt(what_to_load(work, kind)))

  damage()
  assert seen - {"loaded"}


class Harmful:
  """A pickle of it runs a command when it is loaded as pickles are."""

  def __reduce__(self):
    return os.system, ("touch harm",)


def spoil(folder, valid, fault):
  """Writes weights with a fault; returns what the user gives, and what the error must say."""
  import torch
  if fault == "web page":
    (folder / "w.pth").write_text("<!DOCTYPE html><title>Sign in</title>")
    return "w.pth", "w.pth is a web page, not what its name says: download it again"
  if fault == "pointer":
    (folder / "w.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    return "w.safetensors", "w.safetensors is a Git LFS pointer, not the file itself: run `git lfs"
  if fault == "cut":
    (folder / "w.pth").write_bytes((valid / "zip.pth").read_bytes()[:-3000])
    return "w.pth", "w.pth is cut off: download it again"
  if fault == "code":
    torch.save({"model": {"a": torch.zeros(2)}, "hook": Harmful()}, folder / "w.ckpt")
    return "w.ckpt", "which could run code and is refused"
  if fault == "a tensor":
    torch.save(torch.zeros(3), folder / "w.bin")
    return "w.bin", "w.bin holds a Tensor, not the named arrays of a model"
  if fault == "length":
    (folder / "w.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}" + bytes(90))
    return "w.safetensors", "w.safetensors is no safetensors file, or is damaged: download it"
  if fault in ("width", "layers"):
    key, value, found = dict(width=("hidden_size", 10**9, 8),
                             layers=("num_hidden_layers", 10**7, 2))[fault]
    shutil.copytree(valid / "hf", folder / "w")
    config = json.loads((folder / "w" / "config.json").read_text()) | {key: value}
    (folder / "w" / "config.json").write_text(json.dumps(config))
    return "w", f"w: config.json says {key} {value}, the file's arrays have {found}"
  if fault == "escape":
    (folder / "w").mkdir()
    (folder / "w" / "model.safetensors.index.json").write_text(json.dumps(dict(
        weight_map={"cls_token": "../other.safetensors"})))
    shutil.copy(valid / "official.safetensors", folder / "other.safetensors")
    return "w", "which is not in its folder, and is refused"
  assert fault == "processor"
  shutil.copytree(valid / "hf", folder / "w")
  (folder / "w" / "preprocessor_config.json").write_text('{"size": "large"}')
  return "w", "preprocessor_config.json: size must be a number of pixels"


@pytest.mark.parametrize("fault", ["web page", "pointer", "cut", "code", "a tensor", "length",
                                   "width", "layers", "escape", "processor"])
@pytest.mark.parametrize("command", ["features", "export"])
def test_commands_say_it_in_one_line(valid, tmp_path, monkeypatch, capsys, fault, command):
  monkeypatch.chdir(tmp_path)
  Image.new("RGB", (8, 8)).save("a.png")
  weights, said = spoil(tmp_path, valid, fault)
  arguments = dict(features=["a.png", "--weights", weights, "--out", "out.npy"],
                   export=[weights, "--format", "safetensors", "--out", "out"])[command]
  before = set(tmp_path.rglob("*"))
  monkeypatch.setattr(sys, "argv", [command, *arguments])
  assert dict(features=features, export=export)[command].main() == 1
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1 and said in error, error
  assert set(tmp_path.rglob("*")) == before


def test_images_of_other_channels(tmp_path):
  """Such weights load, but there is no telling what their images are."""
  settings = SETTINGS | dict(in_channels=4)
  params = nnx.to_pure_dict(nnx.state(build(settings, rngs=nnx.Rngs(0))))
  save_file(naming.flatten(params), tmp_path / "model.safetensors")
  (tmp_path / "config.json").write_text(json.dumps({"dinov3_jax": settings}))
  model = dinov3_jax.load(None, tmp_path)
  assert model(np.zeros((1, 4, 4, 4), "f4"))["cls"].shape == (1, 8)
  with pytest.raises(ValueError, match="is a model of images with 4 channels, not of RGB: call"):
    open_model(str(tmp_path))
