import chex
import jax
import pytest
from flax import nnx

from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.evals.backbone import open_model, patch_side
from dinov3_jax.export import export
from dinov3_jax.models.variants import VARIANTS, Variant
from dinov3_jax.train import checkpoint
from dinov3_jax.train.state import init_state


@pytest.fixture(autouse=True)
def small_variants(monkeypatch):
  changes = dict(vits16=dict(width=32, depth=2, num_heads=2, patch_size=8),
                 convnext_tiny=dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), layerscale=1.0))
  for name, settings in changes.items():
    monkeypatch.setitem(VARIANTS, name, Variant(settings, VARIANTS[name].releases))


@pytest.mark.parametrize("name, side, near", [("vits16", 8, "16 or 24"),
                                              ("convnext_tiny", 32, "32")])
def test_a_size_is_whole_patches(name, side, near):
  model, _ = open_model("random", name, size=2 * side)
  assert patch_side(model) == side
  with pytest.raises(ValueError, match=f"no whole number of the model.s patches of {side}: take "
                                       f"{near}$"):
    open_model("random", name, size=20)


def test_random_weights_need_a_name():
  with pytest.raises(ValueError, match="random weights need a --model"):
    open_model("random")


def test_a_run_of_our_own_says_what_its_images_need(tiny_config, tmp_path):
  tiny_config.crops.update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
  state = jax.jit(lambda: init_state(tiny_config))()
  with checkpoint.Writer(tmp_path, keep=1, keep_every=0) as writer:
    writer.save(1, {"student": state.student, "teacher": state.teacher}, {}, tiny_config)
  model, prepare = open_model(str(tmp_path))
  assert prepare == Preprocess((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 32)
  chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model)), state.teacher["backbone"])

  export(tmp_path, "safetensors", tmp_path / "out")
  _, prepare = open_model(str(tmp_path / "out" / "model.safetensors"), size=(16, 24))
  assert prepare == Preprocess((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (16, 24))


def test_the_dtype_of_the_computation():
  model, prepare = open_model("random", "vits16", dtype="bfloat16")
  assert {x.dtype.name for x in jax.tree.leaves(nnx.state(model))} == {"bfloat16"}
  assert prepare == Preprocess(size=224)
