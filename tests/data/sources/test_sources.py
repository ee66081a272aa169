"""What `open_source` refuses."""

import pytest
from PIL import Image

from dinov3_jax.data.sources import open_source


@pytest.mark.parametrize("spec, split, message", [
  ("nowhere", "train", "no folder of images at nowhere"), ("empty", "train", "no image below"),
  ("empty", "dev", "unknown split 'dev'"), ("one", "val", "none is held out")])
def test_errors_are_one_clear_line(tmp_path, monkeypatch, spec, split, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty").mkdir()
  (tmp_path / "one").mkdir()
  Image.new("RGB", (4, 4)).save(tmp_path / "one" / "a.png")
  with pytest.raises(ValueError, match=message) as error:
    open_source(spec, split)
  assert "\n" not in str(error.value)
