import jax
import numpy as np
import pytest

from configs import base, dinotxt_vitl16
from dinov3_jax.costs.collectives import bytes_by_kind, collectives, sent
from dinov3_jax.text.ahead import text_parts
from dinov3_jax.train import sharding
from dinov3_jax.train.ahead import sides


def small(**mesh):
  """A step of 32 pairs on a small backbone, and eight devices to compile it for."""
  config = dinotxt_vitl16.get_config()
  config.backbone.update(weights="lvd1689m", model="vits16")
  config.embedding = 768
  config.vision_head.update(depth=1, drop_path=0.0)
  config.text.update(context=6, width=16, depth=1, num_heads=2)
  config.images.size = 32
  config.train.update(batch_size=32, dtype="float32", remat="none")
  config.mesh.update(mesh)
  return config, sharding.make_mesh(config, jax.devices()[:8])


def test_features_are_gathered_once_and_gradients_summed_once():
  config, mesh = small(data=8)
  (part,) = text_parts(config, mesh)
  found = bytes_by_kind(collectives(part.lower().compile().as_text(), 8))
  of_features = 2 * sent("all-gather", 4 * (4 * 768 + 4), 8)
  assert part.least["all-gather"] == of_features
  assert found["all-gather"] == pytest.approx(of_features, rel=0.01)
  assert found["all-reduce"] == pytest.approx(part.least["all-reduce"], rel=0.01)
  assert found.keys() == part.least.keys() == {"all-gather", "all-reduce"}


def test_cut_parameters_are_gathered_and_their_gradients_scattered():
  (part,) = text_parts(*small(data=2, fsdp=4))
  assert part.least.keys() == {"all-gather", "all-reduce", "reduce-scatter"}
  state, frozen = part.kept
  table = state.student["text_tower"]["token_embedding"]
  assert table.sharding.shard_shape(table.shape) == (49408 // 4, 16)
  cut = sum(x.size for x in jax.tree.leaves(state.student) if not x.sharding.is_fully_replicated)
  assert part.least["reduce-scatter"] == pytest.approx(sent("reduce-scatter", 4 * cut, 4))
  assert {x.dtype for x in jax.tree.leaves(frozen)} == {np.dtype("float32")}


def test_the_backbone_must_be_named():
  config, mesh = small()
  config.backbone.model = ""
  with pytest.raises(ValueError, match=r"set backbone\.model"):
    text_parts(config, mesh)


def test_sizes_of_images_and_of_crops():
  assert sides(dinotxt_vitl16.get_config()) == [(224, 0, 0)]
  assert sides(base.get_config()) == [(224, 96, 0)]


def test_a_step_on_cached_features_does_without_the_backbone():
  config, mesh = small(data=2, fsdp=4)
  (whole,) = text_parts(config, mesh)
  config.features.views = 2
  (cached,) = text_parts(config, mesh)
  assert cached.flops.full < whole.flops.full
  assert cached.least["all-gather"] < whole.least["all-gather"]
  _, batch = cached.lower().args_info[0]
  assert set(batch) == {"tokens", "features"} and batch["features"]["cls"].shape == (32, 384)


def test_micro_batches_send_parameters_and_gradients_once_each():
  whole, parts = small(data=2, fsdp=4), small(data=2, fsdp=4)
  parts[0].train.micro_batches = 2
  (whole,), (parts,) = text_parts(*whole), text_parts(*parts)
  for kind in ("all-reduce", "reduce-scatter"):
    assert parts.least[kind] == 2 * whole.least[kind]
  student = parts.kept[0].student
  cut = sum(x.size for x in jax.tree.leaves(student) if not x.sharding.is_fully_replicated)
  # Each part needs them twice, for its features and for its gradients; the whole batch once.
  assert parts.least["all-gather"] - whole.least["all-gather"] == pytest.approx(
    3 * sent("all-gather", 4 * cut / 4, 4))
  config, mesh = small(data=8)
  config.train.micro_batches = 3
  with pytest.raises(ValueError, match=r"train\.micro_batches=3 does not divide the 4 images"):
    text_parts(config, mesh)
