import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.models.variants import variant
from dinov3_jax.text import backbone as backbones
from dinov3_jax.weights.loading import load


def test_a_backbone_is_what_load_reads(teacher_run):
  frozen = backbones.read(str(teacher_run))
  assert frozen.patch == 8 and frozen.size == 32 and frozen.mean == (0.5, 0.4, 0.3)
  model = load(None, teacher_run)
  np.testing.assert_array_equal(frozen.params["cls_token"], model.cls_token[...])
  assert backbones.read(str(teacher_run), expected=["", frozen.digest]).digest == frozen.digest


def test_the_digest_does_not_depend_on_the_computations_dtype(teacher_run):
  exact, half = (backbones.read(str(teacher_run), dtype=d) for d in (jnp.float32, jnp.bfloat16))
  assert half.digest == exact.digest and half.params["cls_token"].dtype == jnp.bfloat16


def test_another_one_than_expected_is_refused(teacher_run):
  with pytest.raises(ValueError, match="is not the one that the text was aligned with: its digest"):
    backbones.read(str(teacher_run), expected=["0" * 16])


def test_what_settings_leave_out_is_said():
  settings = backbones.complete(variant("vitl16").settings)
  assert settings["patch_size"] == 16 and settings["ffn"] == "mlp"
  convnext = variant("convnext_tiny").settings
  assert backbones.complete(convnext) == convnext


def test_random_weights_need_a_name():
  with pytest.raises(ValueError, match=r"random weights need a name: set backbone\.model"):
    backbones.read("random")


def test_one_that_is_not_there(tmp_path):
  with pytest.raises(FileNotFoundError):
    backbones.read(str(tmp_path / "nothing"))
