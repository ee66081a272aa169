import os
import signal
import sys
import tarfile

import chex
import jax
import numpy as np
import pytest
from PIL import Image

import dinov3_jax
from dinov3_jax import features
from dinov3_jax.data.preprocess import preprocess
from dinov3_jax.evals import extraction
from dinov3_jax.models.variants import VARIANTS, Variant


@pytest.fixture(autouse=True)
def small_variants(monkeypatch):
  changes = dict(vits16=dict(width=32, depth=2, num_heads=2, patch_size=8, storage_tokens=1,
                             layerscale=1.0),
                 convnext_tiny=dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), layerscale=1.0))
  for name, settings in changes.items():
    monkeypatch.setitem(VARIANTS, name, Variant(settings, VARIANTS[name].releases))


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Ten images, nested, and two files that are none; it is the working directory."""
  monkeypatch.chdir(tmp_path)
  rng = np.random.default_rng(0)
  (tmp_path / "images" / "more").mkdir(parents=True)
  for i in range(10):
    place = tmp_path / "images" / ("more" if i % 3 else ".") / f"{i}.png"
    Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(place)
  (tmp_path / "images" / "4bad.jpg").write_bytes(b"no image")
  (tmp_path / "images" / "notes.txt").write_text("no image either")
  return tmp_path


def command(monkeypatch, *arguments):
  """The exit code of the command."""
  monkeypatch.setattr(sys, "argv", ["features", *map(str, arguments)])
  return features.main()


RANDOM = ("--weights", "random", "--model", "vits16", "--size", "16,24", "--batch-size", "8")


def test_images_of_files_folders_and_globs(folder):
  find = lambda *arguments: features.find_images(arguments)
  inner = [f"images/more/{i}.png" for i in (1, 2, 4, 5, 7, 8)]
  everything = ["images/0.png", "images/3.png", "images/4bad.jpg", "images/6.png", "images/9.png",
                *inner]
  assert find("images") == find("images/") == everything
  assert find("images/*.png") == ["images/0.png", "images/3.png", "images/6.png", "images/9.png"]
  assert find("images/**/[12].png", "images/more") == inner
  assert find("images/notes.txt", "images/more/8.png") == ["images/notes.txt", "images/more/8.png"]
  for wrong, message in [("nothing", "nothing matches no file"), ("*.gif", "matches no file"),
                         ("images/n*", "has no image")]:
    with pytest.raises(ValueError, match=message):
      find("images/0.png", wrong)


def test_command(folder, monkeypatch, capsys):
  assert command(monkeypatch, "images", *RANDOM, "--tokens", "all", "--out", "f.safetensors") == 0
  output = capsys.readouterr()
  assert "cls [10, 32]" in output.out and "of 10 images" in output.out
  assert "left out: images/4bad.jpg: cannot identify image file" in output.err
  arrays, names = features.read("f.safetensors")
  assert names == [name for name in features.find_images(["images"]) if "bad" not in name]
  prepare = preprocess(size=(16, 24))
  expected = dinov3_jax.load("vits16")(np.stack([prepare(name) for name in names]))
  expected["patches"] = expected["patches"].reshape(10, 2, 3, 32)
  chex.assert_trees_all_close(arrays, jax.device_get(dict(expected)), atol=1e-5)


def test_npy_of_a_convnext_on_one_device(folder, monkeypatch):
  device, = jax.local_devices()[:1]
  monkeypatch.setattr(jax, "local_devices", lambda *args, **kwargs: [device])
  assert command(monkeypatch, "images/more", "--weights", "random", "--model", "convnext_tiny",
                 "--size", 64, "--tokens", "patches", "--store", "float16", "--out", "f.npy") == 0
  arrays, names = features.read("f.npy")
  assert len(names) == 6
  assert arrays["patches"].shape == (6, 2, 2, 32) and arrays["patches"].dtype == np.float16
  np.testing.assert_array_equal(np.load("f.npy"), arrays["patches"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_goes_on(folder, monkeypatch, capsys, number):
  arguments = ["images", *RANDOM, "--tokens", "patches"]
  assert command(monkeypatch, *arguments, "--out", "whole.safetensors") == 0
  batches, todo = extraction._batches, []

  def first_batch(images, items, *rest):
    todo.append(items)
    os.kill(os.getpid(), number)
    yield from batches(images, items, *rest)

  capsys.readouterr()
  with monkeypatch.context() as patch:
    patch.setattr(extraction, "_batches", first_batch)
    patch.setattr(extraction, "_one_ahead", iter)
    # The batch that is being made is still written.
    assert command(patch, *arguments, "--out", "f.safetensors") == 128 + number
  error = capsys.readouterr().err
  assert error.rstrip().endswith("error: interrupted; the same command goes on from here")
  assert not (folder / "f.safetensors").exists()
  assert command(monkeypatch, *arguments[:-1], "cls", "--out", "f.safetensors") == 1
  assert "another job (its tokens differ)" in capsys.readouterr().err

  monkeypatch.setattr(extraction, "_batches", lambda images, items, *rest: todo.append(items) or (
      batches(images, items, *rest)))
  assert command(monkeypatch, *arguments, "--out", "f.safetensors") == 0
  assert todo == [list(range(11)), [2, 8, 9, 10]]  # 2 is the damaged one, which is read again
  assert (folder / "f.safetensors").read_bytes() == (folder / "whole.safetensors").read_bytes()
  assert "4bad.jpg" in capsys.readouterr().err  # of the part before the interruption
  assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("changes, message", [
  (["--out", "f.txt"], "f.txt must end in .safetensors or .npy"),
  (["--out", "there.npy"], "there.npy is there already"),
  (["--out", "no/f.npy"], "no/f.npy cannot be written"),
  (["--out", "f.npy", "--tokens", "all"], "take .safetensors for all tokens"),
  (["--size", "20"], "a size of 20 is no whole number of the model's patches of 8: take 16 or 24"),
  (["--model", "vits17"], "there is no model 'vits17'"),
  (["--weights", "elsewhere.pth"], "elsewhere.pth"),
  (["--batch-size", "0"], "--batch-size must be at least 1"),
  (["--out", "mine.npy"], "mine.json is there already: delete it, or choose another --out"),
  (["missing.jpg"], "missing.jpg matches no file"),
])
def test_errors_are_one_line(folder, monkeypatch, capsys, changes, message):
  (folder / "there.npy").touch()
  (folder / "mine.json").write_text("mine")
  assert command(monkeypatch, "images", *RANDOM, "--out", "f.safetensors", *changes) == 1
  error = capsys.readouterr().err
  assert error.startswith("error: ") and message in error and error.count("\n") == 1
  assert not list(folder.glob("f.*")) and (folder / "mine.json").read_text() == "mine"


def test_home_folder(folder, monkeypatch, capsys):
  monkeypatch.setenv("HOME", str(folder))
  images = features.find_images(["~/images/more", "~/images/[03].png"])
  assert images == [f"{folder}/images/{name}.png" for name in
                    ["more/1", "more/2", "more/4", "more/5", "more/7", "more/8", "0", "3"]]
  assert command(monkeypatch, "~/images/more", *RANDOM, "--out", "~/f.npy") == 0
  assert (folder / "f.npy").exists() and not (folder / "~").exists()
  assert command(monkeypatch, "images", *RANDOM, "--weights", "~/w.pth", "--out", "g.npy") == 1
  assert f"{folder}/w.pth" in capsys.readouterr().err


def test_links_and_names_that_are_no_utf8(folder, monkeypatch, capsys):
  (folder / "images" / "more" / "loop").symlink_to(folder / "images")
  (folder / "images" / "linked").symlink_to(folder / "elsewhere")
  (folder / "elsewhere").mkdir()
  odd = os.fsdecode(b"caf\xe9.png")
  os.rename("images/0.png", f"elsewhere/{odd}")
  os.rename("images/4bad.jpg", os.fsdecode(b"images/\xff.jpg"))
  found = features.find_images(["images"])
  assert f"images/linked/{odd}" in found and len(found) == 11
  assert command(monkeypatch, "images", *RANDOM, "--out", os.fsdecode(b"\xfe.npy")) == 0
  output = capsys.readouterr()
  assert r"left out: images/\xff.jpg: " in output.err
  assert output.out.startswith(r"\xfe.npy: cls [10, 32]")
  assert r"images/linked/caf\xe9.png" in features.read(os.fsdecode(b"\xfe.npy"))[1]
  with pytest.raises(ValueError, match=r"^b\\xff matches no file"):
    features.find_images([os.fsdecode(b"b\xff")])


def test_too_little_memory_is_one_line(folder, monkeypatch, capsys):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory.\nMore.")
  monkeypatch.setattr(extraction, "_batches", refuse)
  assert command(monkeypatch, "images", *RANDOM, "--out", "f.npy") == 1
  assert "error: the memory of the device does not suffice (RESOURCE_EXHAUSTED: Out of memory.): " \
         "take a smaller --batch-size" in capsys.readouterr().err


def test_other_names_of_the_module():
  with pytest.raises(AttributeError, match="no attribute 'nothing'"):
    features.nothing  # noqa: B018


def test_no_image_at_all(folder, monkeypatch, capsys):
  assert command(monkeypatch, "images/4bad.jpg", *RANDOM, "--out", "f.npy") == 1
  assert ("error: none of the 1 images can be read; the first is images/4bad.jpg: cannot identify "
          "image file") in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "1,2,3", "x", "16,"])
def test_sizes_that_are_none(size, capsys):
  with pytest.raises(SystemExit):
    command(pytest.MonkeyPatch(), "images", "--weights", "w", "--out", "f.npy", "--size", size)
  assert "a size is one number or HEIGHT,WIDTH" in capsys.readouterr().err


def test_a_tar_has_the_features_of_its_images(folder, monkeypatch, capsys):
  monkeypatch.setenv("DINOV3_JAX_CACHE", str(folder / "cache"))
  with tarfile.open(folder / "x.tar", "w") as tar:
    tar.add("images", "images")
  for images, out in (("images", "folder.npy"), ("x.tar", "tar.npy")):
    assert command(monkeypatch, images, *RANDOM, "--out", out) == 0
    assert "4bad.jpg: cannot identify" in capsys.readouterr().err
  (ours, names), (theirs, expected) = (features.read(out) for out in ("tar.npy", "folder.npy"))
  assert sorted(names) == sorted(f"x.tar/{name}" for name in expected)
  order = [names.index(f"x.tar/{name}") for name in expected]
  chex.assert_trees_all_close(ours["cls"][order], theirs["cls"], rtol=1e-6, atol=1e-6)


def test_the_function(folder, caplog):
  weights = dict(weights="random", model="vits16", size=(16, 24), batch_size=8)
  arrays, names = dinov3_jax.features("images", **weights)
  assert names[0] == "images/0.png" and len(names) == 10 and arrays["cls"].shape == (10, 32)
  assert "left out: images/4bad.jpg: " in caplog.text
  again, _ = dinov3_jax.features(["images/0.png", "images/3.png"], out="two.npy", **weights)
  np.testing.assert_allclose(again["cls"], arrays["cls"][:2], rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(features.read("two.npy")[0]["cls"], again["cls"])
  grid, _ = dinov3_jax.features("images/0.png", tokens="patches", store="float16", **weights)
  assert grid["patches"].shape == (1, 2, 3, 32) and grid["patches"].dtype == np.float16
  for images, message in (([], "there are no images"), ("nothing", "nothing matches no file")):
    with pytest.raises(ValueError, match=message):
      dinov3_jax.features(images, **weights)


def test_pictures_in_memory_have_the_features_of_their_files(folder):
  weights = dict(weights="random", model="vits16", size=(16, 24), batch_size=8, tokens="all")
  arrays, names = dinov3_jax.features("images/more", **weights)
  pictures = [Image.open(name) for name in names]
  for given in (pictures, list(map(np.asarray, pictures))):
    found, places = dinov3_jax.features(given, **weights)
    assert places == [str(i) for i in range(len(names))]
    chex.assert_trees_all_equal_shapes(found, arrays)
    chex.assert_trees_all_close(found, arrays, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="out is for files"):
    dinov3_jax.features(pictures, out="x.npy", **weights)
  with pytest.raises(ValueError, match="an image must be uint8"):
    dinov3_jax.features([np.zeros((4, 4, 3))], **weights)
