import importlib

import jax
import pytest
from ml_collections import ConfigDict

from dinov3_jax.models.variants import variant
from dinov3_jax.text.networks import abstract_modules, official_tree
from dinov3_jax.weights import naming


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def released():
  """The shapes of the published model's trained networks."""
  config = importlib.import_module("configs.dinotxt_vitl16").get_config()
  return abstract_modules(config, variant("vitl16").settings)[1]


def test_the_recipe_has_the_sizes_of_the_published_model(released):
  millions = lambda *names: round(sum(count(released[name]) for name in names) / 1e6, 1)
  assert millions("vision_head") == 25.3
  assert millions("text_tower", "text_head") == 538.1


def test_the_recipe_has_the_arrays_of_the_published_file(released):
  arrays = {entry.name: entry.theirs for entry in naming.entries(official_tree(released))}
  expected = {
    "logit_scale": (1,), "visual_model.head.ln_final.weight": (1024,),
    "visual_model.head.blocks.1.attn.qkv.weight": (3072, 1024),
    "visual_model.head.blocks.0.mlp.w1.weight": (2752, 1024),
    "visual_model.head.blocks.0.ls2.gamma": (1024,),
    "text_model.backbone.token_embedding.weight": (49408, 1280),
    "text_model.backbone.positional_embedding": (77, 1280),
    "text_model.backbone.blocks.23.attention.qkv.weight": (3840, 1280),
    "text_model.backbone.blocks.0.attention_norm.weight": (1280,),
    "text_model.backbone.blocks.0.feed_forward.fc1.weight": (5120, 1280),
    "text_model.backbone.ln_final.bias": (1280,),
    "text_model.head.linear_projection.weight": (2048, 1280)}
  assert expected.items() <= arrays.items()
  assert "visual_model.head.blocks.0.attn.qkv.bias" not in arrays


def test_a_backbone_without_heads_gets_heads_of_64_channels():
  config = ConfigDict(importlib.import_module("configs.dinotxt_vitl16").get_config())
  _graphs, params = abstract_modules(config, variant("convnext_tiny").settings)
  assert params["vision_head"]["blocks"]["attn"]["qkv"]["kernel"].shape == (2, 768, 3, 768)
  assert params["vision_head"]["linear_projection"]["kernel"].shape == (768, 1024)
