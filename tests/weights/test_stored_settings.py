import json
import math
import re
import time

import numpy as np
import pytest

from dinov3_jax.models.variants import VARIANTS
from dinov3_jax.weights import architecture, huggingface, naming, stored_settings

VIT = dict(width=16, depth=2, num_heads=2, patch_size=4, storage_tokens=1, mask_k_bias=True)
CONVNEXT = dict(depths=(1, 2, 1, 1), dims=(4, 8, 12, 16))


def arrays_of(settings, convention):
  shapes = architecture.abstract(settings)[1]
  return {e.name: np.zeros(e.theirs, "f4") for e in naming.entries(shapes, convention, True)}


def write(folder, config):
  (folder / "config.json").write_text(json.dumps(config))


def test_ours_and_hugging_faces(tmp_path):
  for settings in (VIT, CONVNEXT):
    write(tmp_path, {"dinov3_jax": settings})
    found = stored_settings.read(tmp_path, "official", arrays_of(settings, "official"))
    assert found == json.loads(json.dumps(settings))
    write(tmp_path, huggingface.config(settings))
    arrays = arrays_of(settings, "huggingface")
    assert stored_settings.read(tmp_path, "huggingface", arrays) == huggingface.settings(
        huggingface.config(settings))
  # Files of the reference have no settings; a document beside them is of something else.
  assert stored_settings.read(tmp_path, "official", arrays_of(VIT, "official")) is None


@pytest.mark.parametrize("key, value, found", [
    ("hidden_size", 10**9, 16), ("num_hidden_layers", 10**7, 2), ("intermediate_size", 10**9, 64),
    ("num_register_tokens", 10**9, 1), ("patch_size", 10**6, 4), ("num_channels", 10**9, 3)])
def test_sizes_are_held_against_the_arrays(tmp_path, key, value, found):
  write(tmp_path, huggingface.config(VIT) | {key: value})
  start = time.perf_counter()
  with pytest.raises(ValueError, match=f"config.json says {key} {value}, the file's arrays have "
                                       f"{found}"):
    stored_settings.read(tmp_path, "huggingface", arrays_of(VIT, "huggingface"))
  assert time.perf_counter() - start < 5  # nothing was built


@pytest.mark.parametrize("key, value, found", [
    ("width", 10**9, 16), ("depth", 10**7, 2), ("ffn_ratio", 1e9, 64),
    ("storage_tokens", 10**9, 1), ("in_channels", 10**9, 3), ("stem", "conv", "patch"),
    ("ffn", "swiglu", "mlp")])
def test_sizes_of_our_own_settings(tmp_path, key, value, found):
  write(tmp_path, {"dinov3_jax": VIT | {key: value}})
  word = "hidden" if key == "ffn_ratio" else key
  with pytest.raises(ValueError, match=rf"config.json says {word} .*, the file's arrays have "
                                       f"{found}"):
    stored_settings.read(tmp_path, "official", arrays_of(VIT, "official"))


def test_sizes_of_a_convnext(tmp_path):
  arrays = arrays_of(CONVNEXT, "huggingface")
  write(tmp_path, huggingface.config(CONVNEXT) | dict(hidden_sizes=[4, 8, 12, 10**9]))
  with pytest.raises(ValueError, match=re.escape("hidden_sizes [4, 8, 12, 1000000000], the file's "
                                                 "arrays have [4, 8, 12, 16]")):
    stored_settings.read(tmp_path, "huggingface", arrays)
  write(tmp_path, huggingface.config(CONVNEXT) | dict(depths=[1, 2, 1, 10**7]))
  with pytest.raises(ValueError, match=r"says depths \[1, 2, 1, 10000000\], the file's arrays"):
    stored_settings.read(tmp_path, "huggingface", arrays)
  write(tmp_path, huggingface.config(VIT))
  with pytest.raises(ValueError, match="is that of another kind of model than the file's arrays"):
    stored_settings.read(tmp_path, "huggingface", arrays)


@pytest.mark.parametrize("value", [None, [], "x", 1.5, 10**31, math.nan, -1, True, {"a": 1}])
@pytest.mark.parametrize("key", ["width", "depth", "num_heads", "patch_size", "norm_eps", "ffn"])
def test_values_of_a_wrong_type(tmp_path, key, value):
  fits = (key, value) == ("norm_eps", 1.5)
  if fits:
    return stored_settings.validate(VIT | {key: value})
  with pytest.raises(ValueError, match=f"no settings of a model: {key} (cannot|must) be") as error:
    stored_settings.validate(VIT | {key: value})
  assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_everything_wrong_is_listed():
  with pytest.raises(ValueError, match=re.escape(
      "there is no color; depth is missing; num_heads cannot be 0; rope: base cannot be '9'; "
      "norm must be layernorm or rmsnorm, not 'batch'")):
    stored_settings.validate(dict(width=8, color=1, num_heads=0, rope=dict(base="9"), norm="batch"))
  for wrong in (None, [], "x", 3):
    with pytest.raises(ValueError, match="the settings of a model are an object"):
      stored_settings.validate(wrong)
  with pytest.raises(ValueError, match="dims must be four whole numbers, not None"):
    stored_settings.validate(dict(depths=[1, 1, 1, 1]))


@pytest.mark.parametrize("name", VARIANTS)
def test_settings_of_every_variant_are_valid(name):
  stored_settings.validate(json.loads(json.dumps(VARIANTS[name].settings)))


def test_the_document_is_named(tmp_path):
  for content, said in (("{", "is no valid JSON"), ("[]", "holds no JSON object"),
                        ('{"model_type": "bert"}', "is that of a 'bert', not of a dinov3_vit"),
                        ('{"model_type": "dinov3_vit", "hidden_size": "x"}',
                         ": hidden_size must be a whole number from 1 to 2**31, not 'x'"),
                        ('{"dinov3_jax": 3}', ": the settings of a model are an object, not 3")):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "config.json")) + ".*"
                       + re.escape(said)):
      stored_settings.read(tmp_path, "huggingface", arrays_of(VIT, "huggingface"))
