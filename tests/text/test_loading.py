import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dinov3_jax.text.files import BESIDE
from dinov3_jax.text.loading import export_text, is_text_run, load_text
from dinov3_jax.weights.loading import load


def same(a, b):
  x = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
  for name in ("global", "patches"):
    np.testing.assert_array_equal(a.encode_image(x)[name], b.encode_image(x)[name])
    np.testing.assert_array_equal(a.encode_text("red")[name], b.encode_text("red")[name])


@pytest.fixture(scope="module")
def exported(text_run, tmp_path_factory):
  """A run's export: its folder, and the arrays in it."""
  folder = tmp_path_factory.mktemp("exported")
  export_text(text_run, "safetensors", folder)
  return folder


@pytest.mark.parametrize("format, file", [("official", "dinotxt.pth"),
                                          ("safetensors", "dinotxt.safetensors")])
def test_an_export_is_the_run_bit_for_bit(text_run, tmp_path, format, file):
  out = tmp_path / "out"
  written = export_text(text_run, format, out)
  assert {path.name for path in written} == {BESIDE, file}
  same(load_text(out / file), load_text(text_run))


def test_an_export_has_the_released_files_names(exported, recording):
  """All of them, whatever the sizes: those of the recorded network are of the same kind."""
  names = set(load_file(exported / "dinotxt.safetensors"))
  expected = {name for name in recording("dinotxt").record["digest"] if ".blocks.1." not in name}
  own = {name for name in names if ".blocks.1." not in name}
  assert own - {"visual_model.head.linear_projection.weight"} == expected


def test_the_released_file_needs_nothing_beside_it(text_run, exported, tmp_path, teacher_run):
  """Settings follow from the shapes where heads are 64 wide, as in the released model."""
  arrays = load_file(exported / "dinotxt.safetensors")
  rng = np.random.default_rng(0)

  def widened(name, x):  # the text tower, from 16 to 64 channels
    if name.startswith("text_model.backbone.") or name.endswith("linear_projection.weight"):
      if name.startswith("visual"):
        return x
      grow = lambda n: n * 4 if n in (16, 48, 64) else n
      shape = tuple(grow(n) for n in x.shape)
      return rng.standard_normal(shape).astype(np.float32) * 0.1
    return x

  arrays = {name: widened(name, x) for name, x in arrays.items()}
  path = tmp_path / "released.safetensors"
  save_file(arrays, path)
  model = load_text(path, teacher_run)
  assert model.config.text.to_dict() == dict(vocabulary=49408, context=6, width=64, depth=1,
                                             num_heads=1, ffn_ratio=4.0)
  assert model.config.embedding == 32 and model.config.vision_head.depth == 2
  np.testing.assert_array_equal(model.params["text_tower"]["positional_embedding"],
                                arrays["text_model.backbone.positional_embedding"])


@pytest.mark.parametrize("change, message", [
  (lambda a: a.pop("logit_scale"), "missing: logit_scale"),
  (lambda a: a.update(more=np.zeros(2, np.float32)), "of no use: more"),
  (lambda a: a.update({"visual_model.head.ln_final.bias": np.zeros(3, np.float32)}),
   r"ln_final\.bias is \[3\], expected \[24\]"),
  (lambda a: a.pop("text_model.backbone.token_embedding.weight"), "holds no text tower")])
def test_a_file_is_read_strictly(exported, tmp_path, change, message):
  arrays = load_file(exported / "dinotxt.safetensors")
  change(arrays)
  save_file(arrays, tmp_path / "dinotxt.safetensors")
  (tmp_path / BESIDE).write_text((exported / BESIDE).read_text())
  with pytest.raises(ValueError, match=message) as caught:
    load_text(tmp_path / "dinotxt.safetensors")
  assert "\n" not in str(caught.value)


def test_another_backbone_than_the_runs_is_refused(text_run, tmp_path):
  export_text(text_run, "safetensors", tmp_path)
  settings = json.loads((tmp_path / BESIDE).read_text())
  settings["backbone"]["digest"] = "0" * 16
  (tmp_path / BESIDE).write_text(json.dumps(settings))
  with pytest.raises(ValueError, match="not the one that the text was aligned with"):
    load_text(tmp_path / "dinotxt.safetensors")


def test_runs_of_other_kinds_are_told_apart(text_run, teacher_run):
  assert is_text_run(text_run) and not is_text_run(teacher_run)
  assert not is_text_run(teacher_run / "nothing")
  with pytest.raises(ValueError, match="a run without text: take"):
    load_text(teacher_run)
  with pytest.raises(ValueError, match="load_text for it"):
    load(None, text_run)


def test_other_formats_are_refused(text_run, tmp_path):
  with pytest.raises(ValueError, match="official or safetensors, not as hf"):
    export_text(text_run, "hf", tmp_path / "out")


def test_bfloat16(text_run):
  model = load_text(text_run, dtype=jnp.bfloat16)
  exact = load_text(text_run)
  a, b = (m.encode_text("a red square")["global"] for m in (model, exact))
  assert model.params["text_tower"]["token_embedding"].dtype == jnp.bfloat16
  assert a.dtype == np.float32 and (a * b).sum() > 0.99
