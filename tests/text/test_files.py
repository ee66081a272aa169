import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from dinov3_jax.text import files

RELEASED = {  # the shapes of a file as the released one, smaller
  "text_model.backbone.token_embedding.weight": (50, 128),
  "text_model.backbone.positional_embedding": (9, 128),
  "text_model.backbone.blocks.0.feed_forward.fc1.weight": (256, 128),
  "text_model.backbone.blocks.2.feed_forward.fc1.weight": (256, 128),
  "text_model.head.linear_projection.weight": (48, 128),
  "visual_model.head.ln_final.weight": (24,),
  "visual_model.head.blocks.1.mlp.w1.weight": (64, 24)}


def arrays(**changes):
  return {name: np.zeros(shape, np.float32) for name, shape in (RELEASED | changes).items()
          if shape is not None}


def test_settings_follow_from_the_shapes(tmp_path):
  path = tmp_path / "dinotxt.safetensors"
  save_file(arrays(), path)
  config = files.settings_of(path, files.open_arrays(path))
  assert config.text.to_dict() == dict(vocabulary=50, context=9, width=128, depth=3, num_heads=2,
                                       ffn_ratio=2.0)
  assert (config.embedding, config.vision_head.depth, config.images.size) == (48, 2, 224)
  assert config.backbone.model == "vitl16"


def test_what_lies_beside_an_export_counts(tmp_path):
  path = tmp_path / "dinotxt.safetensors"
  save_file(arrays(), path)
  (tmp_path / files.BESIDE).write_text(json.dumps(dict(embedding=2)))
  assert files.settings_of(path, arrays()).embedding == 2
  (tmp_path / files.BESIDE).write_text("{")
  with pytest.raises(ValueError, match=r"dinotxt\.json is damaged"):
    files.settings_of(path, arrays())


@pytest.mark.parametrize("changes, message", [
  ({"text_model.backbone.token_embedding.weight": (50, 100)}, "is 100 wide, no multiple of 64"),
  ({"visual_model.head.ln_final.weight": None}, r"ln_final\.weight is missing"),
  ({"visual_model.head.blocks.1.mlp.w1.weight": None}, r"blocks are missing"),
  ({"text_model.backbone.positional_embedding": (9,)}, "has not 2 axes")])
def test_what_is_no_whole_dinotxt(tmp_path, changes, message):
  path = tmp_path / "x.safetensors"
  save_file(arrays(**changes), path)
  with pytest.raises(ValueError, match=message):
    files.settings_of(path, files.open_arrays(path))


def test_what_trainers_wrap_around_is_taken_off(tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "x.pth"
  torch.save({"model": {name: torch.from_numpy(x) for name, x in arrays().items()}}, path)
  assert files.open_arrays(path).keys() == arrays().keys()


def test_a_file_without_a_text_tower(tmp_path):
  save_file({"cls_token": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
  with pytest.raises(ValueError, match="holds no text tower"):
    files.open_arrays(tmp_path / "x.safetensors")
