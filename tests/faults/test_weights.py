"""Files of weights as they come out of the world: damaged, misnamed, hostile; seen by a user."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import dinov3_jax
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
