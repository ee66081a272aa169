import json

import numpy as np
import pytest

from dinov3_jax.models import callables
from tests import strangers

IMAGES = np.random.default_rng(0).normal(size=(2, 24, 16, 3)).astype(np.float32)


def test_a_function_by_its_name():
  assert callables.find("tests.strangers:pixels") is strangers.pixels
  assert callables.find("numpy:linalg.norm") is np.linalg.norm


@pytest.mark.parametrize("name, message", [
  ("", "must be module:function or transformers:MODEL, not ''"),
  ("pixels", "must be module:function"),
  ("no.such.module:f", "there is no module no.such.module"),
  ("tests.strangers:f", "the module tests.strangers has no f"),
  ("tests.strangers:nothing", "is no function, but int"),
  ("transformers:/no/such/folder", "transformers cannot open /no/such/folder: "),
])
def test_what_is_no_function_is_one_line(name, message):
  with pytest.raises(callables.Misfit) as error:
    callables.find(name)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_what_a_function_says_of_itself():
  assert callables.describe("tests.strangers:pixels") == dict(
    width=12, patch_size=8, mean=(0.5, 0.5, 0.5))
  assert callables.describe("tests.strangers:on_host") == {}


def test_tokens_are_those_of_transformers(tmp_path):
  import torch
  from transformers import Dinov2Model
  path = strangers.save_dinov2(tmp_path)
  cls, patches = callables.find(f"transformers:{path}")(IMAGES)
  with torch.inference_mode():
    tokens = Dinov2Model.from_pretrained(path).eval()(
      torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).last_hidden_state.numpy()
  assert patches.shape == (2, 6, 12)
  np.testing.assert_array_equal(cls, tokens[:, 0])
  np.testing.assert_array_equal(patches, tokens[:, 1:])


def test_without_a_cls_token_the_pooled_output_is_taken(tmp_path):
  cls, patches = callables.find(f"transformers:{strangers.save_siglip(tmp_path)}")(IMAGES)
  assert cls.shape == (2, 12) and patches.shape == (2, 6, 12)  # positions are stretched to 3 x 2
  assert not np.allclose(cls, patches.mean(1))


def test_settings_are_read_without_the_weights(tmp_path):
  path = strangers.save_dinov2(tmp_path)
  (tmp_path / "model.safetensors").unlink()
  told = dict(width=12, patch_size=8, host=True)
  assert callables.describe(f"transformers:{path}") == told
  (tmp_path / "preprocessor_config.json").write_text(
    json.dumps(dict(image_mean=[0.1, 0.2, 0.3], image_std=[1, 1, 1])))
  assert callables.describe(f"transformers:{path}") == told | dict(
    mean=(0.1, 0.2, 0.3), std=(1, 1, 1))


def test_a_digest_is_of_all_weights(tmp_path):
  digests = [callables.find(f"transformers:{strangers.save_dinov2(tmp_path / str(i), seed)}").digest
             for i, seed in enumerate((0, 0, 1))]
  assert digests[0] == digests[1] != digests[2] and len(digests[0]) == 16
