import dataclasses
import sys

import numpy as np
import pytest
from PIL import Image

from dinov3_jax import visualize
from dinov3_jax.evals.backbone import open_model
from dinov3_jax.models.variants import VARIANTS, Variant


@pytest.fixture(autouse=True)
def small_variant(monkeypatch):
  settings = dict(width=32, depth=2, num_heads=2, patch_size=8, storage_tokens=1, layerscale=1.0)
  monkeypatch.setitem(VARIANTS, "vits16", Variant(settings, {}))


def blob():
  """A green image [80, 120, 3] with a noisy red square on rows 24..55 and columns 40..87."""
  image = np.full((80, 120, 3), (90, 160, 90), np.uint8)
  image[24:56, 40:88] = np.random.default_rng(0).integers((180, 0, 0), (240, 60, 60), (32, 48, 3))
  return image


def command(monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["visualize", *map(str, arguments)])
  return visualize.main()


@pytest.fixture
def picture(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Image.fromarray(blob()).save("blob.png")
  return ["blob.png", "--weights", "random", "--model", "vits16"]


@pytest.mark.parametrize("width", [8, 400])  # fewer and more channels than patches
@pytest.mark.parametrize("sign", [1, -1])
def test_foreground(width, sign):
  rng = np.random.default_rng(0)
  mask = np.zeros((10, 15), bool)
  mask[3:7, 5:11] = True
  patches = np.where(mask[..., None], sign * rng.normal(size=width), 0)
  patches = patches + 0.1 * rng.normal(size=(10, 15, width))
  np.testing.assert_array_equal(visualize.foreground(patches), mask)


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 3, 8)])
def test_patches_that_do_not_differ_are_all_foreground(shape):
  mask = visualize.foreground(np.full(shape, 0.3, np.float32))
  assert mask.shape == shape[:2] and mask.all()


@pytest.mark.parametrize("side, size", [(8, 8), (1, 8), (3, 16)])
def test_tiny_images(tmp_path, monkeypatch, capsys, side, size):
  monkeypatch.chdir(tmp_path)
  Image.fromarray(blob()[:side, :side]).save("tiny.png")
  assert command(monkeypatch, "tiny.png", "--weights", "random", "--model", "vits16", "--size",
                 size, "--foreground", "--patch", "0,0") == 0
  picture = np.asarray(Image.open("tiny.dinov3.png"))
  assert picture.shape == (12 + size + 12, 12 + 3 * size + 8 + 12, 3)
  assert f"{size // 8} rows and {size // 8} columns" in capsys.readouterr().out


def test_home_folder(picture, monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert command(monkeypatch, "~/blob.png", *picture[1:], "--size", 16, "--out", "~/b.png") == 0
  assert (tmp_path / "b.png").exists() and not (tmp_path / "~").exists()


@pytest.mark.parametrize("size, expected", [
  (64, (64, 96)), (16, (16, 24)), (3, (8, 8)), ((50, 20), (48, 16)), (67, (64, 104))])
def test_sizes_are_whole_patches(size, expected):
  assert visualize.fit(blob(), size, 8) == expected


def test_a_line_of_pixels_is_not_enlarged():
  line = np.zeros((1, 20_000, 3), np.uint8)
  with pytest.raises(ValueError, match=r"20,000 x 1 pixels would become 10,240,000 x 512.*--size"):
    visualize.fit(line, 512, 16)
  assert visualize.fit(line, (64, 640), 16) == (64, 640)
  assert visualize.fit(np.zeros((10, 300, 3), np.uint8), 512, 16) == (512, 15360)


def test_picture():
  model, prepare = open_model("random", "vits16")
  prepare = dataclasses.replace(prepare, size=(80, 120))
  plain = visualize.visualize(blob(), model, prepare)
  all_three = visualize.visualize(blob(), model, prepare, masked=True, patch=(4, 7))
  image, colours, similar = (all_three[12:92, left:left + 120] for left in (12, 136, 260))
  np.testing.assert_array_equal(plain[12:92, 12:132], blob())
  assert plain.shape == (104, 268, 3) and all_three.shape == (104, 392, 3)
  changed = (image != blob()).any(-1)
  assert changed[28:44, 52:68].any() and not changed[32:40, 56:64].any()  # only around the patch
  assert changed.sum() == 16 * 16 - 8 * 8
  assert not colours[:8].any() and colours[32:48, 48:80].mean() > 60  # the background is black
  brightness = similar.mean(-1)
  assert brightness[32:40, 56:64].mean() > brightness[:8].mean() + 50


def test_command(picture, monkeypatch, capsys):
  assert command(monkeypatch, *picture, "--size", 32) == 0
  assert capsys.readouterr().out == "blob.dinov3.png: 4 rows and 6 columns of patches (8 pixels)\n"
  assert Image.open("blob.dinov3.png").size == (12 + 48 + 4 + 48 + 12, 12 + 32 + 12)
  assert command(monkeypatch, *picture, "--size", "16,16", "--patch", "1,0", "--out", "b.jpg") == 0
  assert Image.open("b.jpg").size == (12 + 16 + 4 + 16 + 4 + 16 + 12, 12 + 16 + 12)


@pytest.mark.parametrize("changes, message", [
  (["--out", "blob.png"], "blob.png is the image itself: choose another --out"),
  (["--out", "b.txt"], "b.txt must end in .png, .jpg or .webp"),
  (["--out", "no/b.png"], "no/b.png cannot be written"),
  (["--model", "vits17"], "there is no model 'vits17'"),
  (["--weights", "elsewhere.pth"], "elsewhere.pth"),
  (["--size", "32", "--patch", "4,0"], "there is no patch 4,0: rows go to 3, columns to 5"),
])
def test_errors_are_one_line(picture, monkeypatch, capsys, changes, message):
  assert command(monkeypatch, *picture, *changes) == 1
  error = capsys.readouterr().err
  assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_what_is_no_image(picture, monkeypatch, capsys, tmp_path):
  (tmp_path / "notes.txt").write_text("no image")
  for name, message in [("missing.png", "missing.png is no file"),
                        ("notes.txt", "notes.txt cannot be read: cannot identify")]:
    assert command(monkeypatch, name, *picture[1:]) == 1
    assert message in capsys.readouterr().err
  with pytest.raises(SystemExit):
    command(monkeypatch, *picture, "--patch", "3")
  assert "a patch is ROW,COLUMN, counted from 0, not 3" in capsys.readouterr().err


def test_a_text_gets_a_map(text_run, captioned, tmp_path, monkeypatch, capsys):
  image = next((captioned / "val" / "red").glob("*.png"))
  out = tmp_path / "map.png"
  command = ["visualize", str(image), "--weights", str(text_run), "--size", "32,48", "--out",
             str(out)]
  monkeypatch.setattr("sys.argv", [*command, "--text", "red"])
  assert visualize.main() == 0
  with Image.open(out) as picture:
    assert picture.height >= 32 and picture.width >= 2 * 48
  assert "4 rows and 6 columns of patches (8 pixels)" in capsys.readouterr().out
  for more, message in ((["--text", " "], "--text is empty"),
                        (["--text", "red", "--foreground"], "--text shows a map of its own")):
    monkeypatch.setattr("sys.argv", [*command, *more])
    assert visualize.main() == 1
    assert message in capsys.readouterr().err
