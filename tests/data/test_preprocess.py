import dataclasses
import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dinov3_jax.data import preprocess as module
from dinov3_jax.data.decode import Decoder
from dinov3_jax.data.preprocess import IMAGENET, SATELLITE, Preprocess, preprocess
from dinov3_jax.data.sources import DamagedImage
from dinov3_jax.train import checkpoint
from dinov3_jax.weights.loading import load, settings_of


@pytest.fixture
def image():
  return np.random.default_rng(0).integers(256, size=(60, 100, 3), dtype="u1")


@pytest.mark.parametrize("weights, expected", [
  ("", IMAGENET),
  ("vits16", IMAGENET),
  ("facebook/dinov3-vitl16-pretrain-lvd1689m", IMAGENET),
  ("facebook/dinov3-vitl16-pretrain-sat493m", SATELLITE),
  ("/some/where/dinov3_vit7b16_pretrain_sat493m-a6675841.pth", SATELLITE),
  ("SAT-493M", SATELLITE),
  ("/saturday/vitl16.pth", IMAGENET),
])
def test_statistics_of_weights(weights, expected):
  made = preprocess(weights)
  assert (made.mean, made.std) == expected
  assert made == Preprocess(*expected) and made.size == 224 and made.resize == "square"


def test_a_folder_may_say_its_own(tmp_path):
  (tmp_path / "preprocessor_config.json").write_text(
    json.dumps(dict(image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 3])))
  assert preprocess(tmp_path) == Preprocess((0.1, 0.2, 0.3), (1, 2, 3))


@pytest.mark.parametrize("size", [32, (48, 80), (224, 16)])
def test_stretches_as_torch_does(image, size):
  torch = pytest.importorskip("torch")
  height, width = (size, size) if isinstance(size, int) else size
  x = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
  x = torch.nn.functional.interpolate(x, (height, width), mode="bilinear", antialias=True)
  mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
  expected = ((x[0] - mean) / std).permute(1, 2, 0).numpy()
  got = preprocess(size=size)(image)
  assert got.dtype == np.float32 and got.shape == (height, width, 3)
  np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("tall", [False, True])  # which pass Pillow does first depends on it
@pytest.mark.parametrize("size", [32, (48, 80), (60, 100), (90, 7)])
def test_bands_change_nothing(image, size, tall, monkeypatch):
  image = image.swapaxes(0, 1) if tall else image
  whole = Preprocess(size=size)(image)
  monkeypatch.setattr(module, "BAND", 700)  # a few rows at once, and fewer at the end
  np.testing.assert_array_equal(Preprocess(size=size)(image), whole)
  height, width = (size, size) if isinstance(size, int) else size
  red = Image.fromarray(image[..., 0].astype(np.float32) / 255)
  red = np.asarray(red.resize((width, height), Image.BILINEAR))
  np.testing.assert_array_equal(whole[..., 0], (red - np.float32(0.485)) / np.float32(0.229))


@pytest.mark.parametrize("resize", ["square", "shorter", None])
def test_a_path_and_a_pillow_image_are_the_same(tmp_path, resize):
  values = np.arange(12 * 9).reshape(9, 12)
  exif = Image.Exif()
  exif[0x0112] = 6
  images = dict(deep=Image.fromarray((values * 600).astype(np.uint16)),
                grey=Image.fromarray(values.astype(np.uint8)),
                clear=Image.fromarray(np.dstack([values] * 4).astype(np.uint8), "RGBA"))
  for decoder in (Decoder(), Decoder(background="white", depth="range")):
    prepare = Preprocess(size=16, resize=resize, decoder=decoder)
    for name, image in images.items():
      path = tmp_path / f"{name}.png"
      image.save(path, exif=exif)
      got = prepare(path)
      with Image.open(path) as opened:
        np.testing.assert_array_equal(prepare(opened), got)
      assert np.ptp(got) > 1
      if resize is None:
        assert got.shape == (12, 9, 3)


def test_normalises_alone(image):
  got = preprocess("sat493m", resize=None)(image)
  np.testing.assert_allclose(got[..., 2], (image[..., 2] / 255 - 0.296) / 0.143, atol=1e-5)
  assert got.shape == image.shape


def test_shorter_side_then_middle(image):
  got = preprocess(size=28, resize="shorter")(image)
  small = Image.fromarray(image).resize((53, 32), Image.BICUBIC)
  middle = np.asarray(small)[2:30, 12:40]  # half a column rounds to the even one
  np.testing.assert_allclose(got, preprocess(resize=None)(middle), atol=1e-6)


def test_all_kinds_of_images(image, tmp_path):
  prepare = Preprocess(size=16)
  expected = prepare(image)
  Image.fromarray(image).save(tmp_path / "image.png")
  np.testing.assert_array_equal(prepare(tmp_path / "image.png"), expected)
  np.testing.assert_array_equal(prepare(str(tmp_path / "image.png")), expected)
  np.testing.assert_array_equal(prepare(Image.fromarray(image).convert("RGBA")), expected)
  batch = prepare(np.stack([image, 255 - image]))
  assert batch.shape == (2, 16, 16, 3)
  np.testing.assert_array_equal(batch[0], expected)


def test_bad_input(image, tmp_path):
  (tmp_path / "text.png").write_text("no image")
  with pytest.raises(DamagedImage, match=r"text\.png"):
    Preprocess()(tmp_path / "text.png")
  for wrong in (image[..., :1], image[0], image.astype("f4")):
    with pytest.raises(ValueError, match="uint8"):
      Preprocess()(wrong)
  for change in (dict(resize="crop"), dict(resize="shorter", size=(8, 8)), dict(size=0)):
    with pytest.raises(ValueError, match=r"resize|size"):
      dataclasses.replace(Preprocess(), **change)


def write(folder, **entries):
  (folder / "preprocessor_config.json").write_text(json.dumps(entries))
  return folder


@pytest.mark.parametrize("entries, size", [
  (dict(size=96), 96), (dict(size=dict(height=96, width=96)), 96),
  (dict(size=dict(height=48, width=96)), (48, 96)), (dict(size=dict(shortest_edge=256)), 256),
  (dict(size=[48, 96]), (48, 96)), (dict(size=[96]), 96), ({}, 224),
  (dict(size=dict(shortest_edge=256), do_center_crop=True, crop_size=224), 224),
  (dict(size=dict(shortest_edge=256), do_center_crop=True,
        crop_size=dict(height=192, width=160)), (192, 160)),
  (dict(size=dict(shortest_edge=256), do_center_crop=False, crop_size=224), 256),
  (dict(size=96, crop_size=64), 96), (dict(size=96, do_center_crop=True), 96)])
def test_a_folder_may_say_its_size(tmp_path, entries, size):
  write(tmp_path, **entries)
  assert preprocess(tmp_path).size == size
  assert preprocess(tmp_path, 32).size == 32 and preprocess(tmp_path, (16, 32)).size == (16, 32)
  assert preprocess(tmp_path).mean == IMAGENET[0]


@pytest.mark.parametrize("name", ["model.safetensors", "backbone.pth", "a.index.json"])
def test_what_lies_beside_a_file_counts(tmp_path, name, monkeypatch):
  write(tmp_path, size=96, image_mean=[0.1, 0.2, 0.3])
  (tmp_path / name).touch()
  monkeypatch.setenv("HOME", str(tmp_path))
  for path in (tmp_path / name, str(tmp_path / name), f"~/{name}", "~"):
    assert preprocess(path) == Preprocess((0.1, 0.2, 0.3), IMAGENET[1], 96)
  monkeypatch.chdir(tmp_path)
  assert preprocess() == Preprocess()  # no weights, whatever the working folder holds


def test_images_that_are_not_normalised(tmp_path):
  made = preprocess(write(tmp_path, do_normalize=False, image_mean=[0.1, 0.2, 0.3]))
  assert (made.mean, made.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("entries, said", [
  (dict(size="224"), "size must be a number of pixels"), (dict(size=0), "size must be"),
  (dict(size=10**9), "size must be a number of pixels up to 16384"), (dict(size=True), "size must"),
  (dict(size=dict(longest_edge=9)), "size must be"), (dict(size=[1, 2, 3]), "size must be"),
  (dict(size=dict(height=9, width=None)), "size must be"), (dict(size=None), "size must be"),
  (dict(crop_size="x", do_center_crop=True), "crop_size must be"),
  (dict(image_mean=0.5), "image_mean must be three numbers"),
  (dict(image_mean=[0.5, 0.5]), "image_mean must be three"),
  (dict(image_mean=[0.5, 0.5, None]), "image_mean must be three"),
  (dict(image_std=[0.5, 0, 0.5]), "image_std must be three positive numbers"),
  (dict(image_std=[1, 1, float("nan")]), "image_std must be three positive numbers"),
  (dict(rescale_factor=1 / 127.5), "only images that are rescaled by 1/255"),
  (dict(rescale_factor=[1]), "rescale_factor must be a number"),
  (dict(do_rescale=False), "only images that are rescaled by 1/255")])
def test_settings_that_cannot_be(tmp_path, entries, said):
  with pytest.raises(ValueError, match=rf"preprocessor_config\.json: .*{said}"):
    preprocess(write(tmp_path, **entries))


@pytest.mark.parametrize("content", ["", "{", "[]", "<html>", "\0"])
def test_damaged_settings(tmp_path, content):
  (tmp_path / "preprocessor_config.json").write_text(content)
  with pytest.raises(ValueError, match=r"preprocessor_config\.json (is|holds) (empty|no|a web)"):
    preprocess(tmp_path)


def test_a_run_says_what_it_was_trained_with(tmp_path, tiny_config):
  tiny_config.crops.update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), global_sizes=(48, 64))
  with checkpoint.Writer(tmp_path, keep=1, keep_every=0) as writer:
    writer.save(1, {"student": {"a": np.ones(2)}}, {}, tiny_config)
  expected = Preprocess((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 48)
  assert preprocess(tmp_path) == preprocess(tmp_path / "checkpoints" / "1") == expected
  assert preprocess(tmp_path, 16).size == 16


def test_a_run_of_text_is_refused(tmp_path):
  with checkpoint.Writer(tmp_path, keep=1, keep_every=0) as writer:
    writer.save(1, {"student": {"a": np.ones(2)}}, {}, ConfigDict(dict(text=dict(width=8))))
  for call in (preprocess, settings_of, lambda path: load(None, path)):
    with pytest.raises(ValueError, match="this run has aligned text with a backbone"):
      call(tmp_path)
