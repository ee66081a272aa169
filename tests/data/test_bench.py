"""What the machine can do: parts that add up, and whether it keeps up."""

import sys

import numpy as np
import pytest

from dinov3_jax.data import bench
from dinov3_jax.data.crops import MultiCrop
from dinov3_jax.data.decode import decode
from dinov3_jax.data.sources import open_source

CROP = MultiCrop(32, 16, locals=2, patch_size=8)


def test_parts_of_an_image(images):
  source = open_source(images, "all")
  parts = bench.measure(source, decode, CROP, range(20))
  assert tuple(parts) == bench.PARTS and all(np.isfinite(ms) for ms in parts.values())
  assert min(parts["read"], parts["decode"], parts["windows"], parts["resize"]) > 0
  left = bench.measure(source, decode, MultiCrop(32, 16, locals=2, patch_size=8, colors="device"),
                       range(5))
  assert left["colours"] == 0


def test_nothing_to_measure(tmp_path, images):
  (tmp_path / "x.png").write_bytes(b"broken")
  with pytest.raises(ValueError, match="none of 1 images can be read"):
    bench.measure(open_source(tmp_path, "all"), decode, CROP, [0])


def test_whether_it_keeps_up():
  parts = dict(zip(bench.PARTS, (0.5, 1.0, 0.1, 1.4, 1.0)))
  slow = bench.report(parts, 0.5, 400, 256, 0.32)
  assert "4.000 ms of CPU an image: 250 images/s a core" in slow[-3]
  assert slow[-1].endswith("takes 800 images/s: the machine makes 50% of that, and the devices "
                           "wait; about 3 cores would do")
  assert bench.report(parts, 0.5, 900, 256, 0.32)[-1].endswith("the machine keeps up")
  assert len(bench.report(parts, 0.5, 900, 256, None)) == len(slow) - 1


def test_the_command(images, tmp_path, monkeypatch, capsys):
  recipe = tmp_path / "recipe.py"
  recipe.write_text("from configs import base\n\ndef get_config():\n  config = base.get_config()\n"
                    "  config.crops.update(global_sizes=(32,), local_sizes=(16,), locals=2)\n"
                    "  return config\n")
  monkeypatch.setattr(sys, "argv", ["bench", str(images), f"--config={recipe}", "--images=5",
                                    "--batch-size=8", "--workers=0", "--seconds=0.1",
                                    "--step-seconds=1000"])
  assert bench.main() == 0
  said = capsys.readouterr().out
  assert "5 of 35 images of" in said and "the machine keeps up" in said
  monkeypatch.setattr(sys, "argv", ["bench", str(tmp_path / "no")])
  assert bench.main() == 1 and "error: no folder of images" in capsys.readouterr().err
