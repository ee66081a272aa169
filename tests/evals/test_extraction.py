import errno
import json
import os
import pathlib
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from dinov3_jax.data.lock import FolderLock, Locked
from dinov3_jax.data.preprocess import Preprocess
from dinov3_jax.data.rows import Rows, read
from dinov3_jax.evals import extraction
from dinov3_jax.evals.extraction import Stopped, check_out, extract, fingerprint, partial_of
from dinov3_jax.models.variants import build

SETTINGS = dict(width=32, depth=2, num_heads=2, patch_size=8, storage_tokens=1, layerscale=1.0)


@pytest.fixture(scope="module")
def model():
  return build(SETTINGS, rngs=nnx.Rngs(0))


@pytest.fixture
def images(tmp_path, monkeypatch):
  """Six, in the working directory."""
  monkeypatch.chdir(tmp_path)
  for i in range(6):
    draw(f"{i}.png", i)
  return [f"{i}.png" for i in range(6)]


def draw(path, seed):
  pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
  Image.fromarray(pixels).save(path)


def run(images, model, out="f.npy", stop_after=None, **changes):
  """Extracts; stops after so many batches of two."""
  asked = []
  stop = lambda: asked.append(0) or len(asked) == stop_after
  return extract(images, out, model, Preprocess(size=16), **dict(batch_size=2, stop=stop) | changes)


def stopped(*args, **kwargs):
  with pytest.raises(Stopped):
    run(*args, **kwargs)


def test_damaged_images_that_were_mended_and_changed_ones_are_read_again(images, model):
  for name in ("0.png", "3.png"):
    os.rename(name, f"good {name}")
    open(name, "w").close()
  stopped(images, model, stop_after=2)
  assert not os.path.exists("f.npy") and os.path.isdir("f.npy.partial")
  os.replace("good 0.png", "0.png")  # mended
  draw("1.png", 99)  # changed
  os.utime("2.png")  # changed for all we know
  damaged = run(images, model)
  assert list(damaged) == ["3.png"] and "cannot identify" in damaged["3.png"]
  arrays, names = read("f.npy")
  assert names == ["0.png", "1.png", "2.png", "4.png", "5.png"]
  assert run(names, model, out="whole.npy") == {}
  np.testing.assert_array_equal(arrays["cls"], read("whole.npy")[0]["cls"])
  assert not os.path.exists("f.npy.partial")


def test_only_what_is_left_is_read(images, model, monkeypatch):
  stopped(images, model, stop_after=2)
  batches, seen = extraction._batches, []
  monkeypatch.setattr(extraction, "_batches", lambda images, todo, *rest: (
      seen.append(todo) or batches(images, todo, *rest)))
  run(images, model)
  assert seen == [[4, 5]]


def test_other_images_and_another_model_are_another_job(images, model):
  stopped(images, model, stop_after=1)
  other = nnx.clone(model)
  # One bit of one parameter, which no mean would show.
  token = other.cls_token[...]
  other.cls_token[...] = token.at[0, 0, 3].set(jnp.nextafter(token[0, 0, 3], 1))
  for args, what in [((images[:-1], model), "images"), ((images[::-1], model), "images"),
                     ((images, other), "model")]:
    with pytest.raises(ValueError, match=rf"another job \(its {what} differ\)"):
      run(*args)
  run(images, model)


def test_fingerprint_tells_models_apart(model):
  ours = fingerprint(model)
  assert fingerprint(build(SETTINGS, rngs=nnx.Rngs(0))) == ours
  assert fingerprint(build(SETTINGS | dict(num_heads=4), rngs=nnx.Rngs(0))) != ours
  seen = {ours}
  leaves, tree = jax.tree.flatten(nnx.state(model))
  graph = nnx.graphdef(model)
  for i, leaf in enumerate(leaves):
    # Two entries change places, or one changes its sign: sums and means stay as they are.
    changed = jnp.flip(leaf.ravel() + jnp.arange(leaf.size) * 1e-3).reshape(leaf.shape)
    state = jax.tree.unflatten(tree, [*leaves[:i], changed, *leaves[i + 1:]])
    seen.add(fingerprint(nnx.merge(graph, state)))
  state = jax.tree.map(lambda x: -x, nnx.state(model))
  seen.add(fingerprint(nnx.merge(graph, state)))
  state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(model))
  seen.add(fingerprint(nnx.merge(graph, state)))
  assert len(seen) == len(leaves) + 3


def test_fingerprint_does_not_depend_on_the_devices(model):
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
  graph, state = nnx.split(model)
  cut = lambda x: NamedSharding(mesh, P(*[None] * (x.ndim - 1), "fsdp") if x.ndim > 1 else P())
  assert fingerprint(nnx.merge(graph, jax.tree.map(
      lambda x: jax.device_put(x, cut(x)), state))) == fingerprint(model)


def test_two_at_once(images, model):
  waiting, go_on = threading.Event(), threading.Event()

  def first():
    run(images, model, stop=lambda: waiting.set() or not go_on.wait(60))

  thread = threading.Thread(target=first)
  thread.start()
  assert waiting.wait(60)
  try:
    with pytest.raises(Locked, match=rf"npy.partial is in use by features .process {os.getpid()}"):
      run(images, model)
  finally:
    go_on.set()
    thread.join()
  assert read("f.npy")[1] == images and not os.path.exists("f.npy.partial")


def test_a_file_that_was_finished_while_waiting_is_seen(images, model, monkeypatch):
  class Late(FolderLock):
    def __enter__(self):
      np.save("f.npy", np.zeros(3))
      return super().__enter__()

  monkeypatch.setattr(extraction, "FolderLock", Late)
  with pytest.raises(ValueError, match=r"f\.npy is there already"):
    run(images, model)
  np.testing.assert_array_equal(np.load("f.npy"), np.zeros(3))
  assert not os.path.exists("f.npy.partial")


def test_files_that_are_not_ours_are_refused(tmp_path):
  (tmp_path / "cats.json").write_text("{}")
  with pytest.raises(ValueError, match=r"cats\.json is there already: delete it, or choose"):
    check_out(tmp_path / "cats.npy", "cls")
  assert check_out(tmp_path / "cats.safetensors", "cls").suffix == ".safetensors"
  (tmp_path / "dogs.npy").symlink_to("nowhere")
  with pytest.raises(ValueError, match=r"dogs\.npy is there already"):
    check_out(tmp_path / "dogs.npy", "cls")


@pytest.mark.parametrize("out", ["f.npy", "f.safetensors"])
def test_a_finished_file_whose_folder_is_still_there_is_taken(images, model, monkeypatch, out):
  open("3.png", "w").close()
  with monkeypatch.context() as patch:
    patch.setattr(Rows, "_clear", lambda rows: setattr(rows, "finished", True))  # as if killed
    run(images, model, out=out)
  before = pathlib.Path(out).read_bytes()
  assert partial_of(check_out(out, "cls")).is_dir()
  assert list(run(images, model, out=out)) == ["3.png"]
  assert pathlib.Path(out).read_bytes() == before and not os.path.exists(f"{out}.partial")


def test_names_that_are_no_utf8(images, model):
  odd = os.fsdecode(b"caf\xe9.png")
  os.rename("1.png", odd)
  os.rename("2.png", "l\nine.png")
  paths = ["0.png", odd, "l\nine.png", "3.png"]
  open(odd, "w").close()
  for out in ("f.npy", "f.safetensors"):
    assert list(run(paths, model, out=out)) == [r"caf\xe9.png"]
    assert read(out)[1] == ["0.png", r"l\x0aine.png", "3.png"]
  json.loads(pathlib.Path("f.json").read_text("utf-8"))


def test_names_that_would_be_written_alike_are_refused(images, model):
  odd = os.fsdecode(b"caf\xe9.png")
  os.rename("1.png", odd)
  os.rename("2.png", r"caf\xe9.png")
  with pytest.raises(ValueError, match=r"both written caf\\xe9\.png") as error:
    run([odd, r"caf\xe9.png"], model)
  str(error.value).encode()


def test_reasons_are_text_on_one_line(images, model, monkeypatch):
  def refuse(self, path):
    raise extraction.DamagedImage(path, "one\nline \ud800")
  monkeypatch.setattr(Preprocess, "__call__", lambda self, path: refuse(self, path) if (
      path == "1.png") else np.zeros((16, 16, 3), np.float32))
  assert run(images, model, out="f.safetensors") == {"1.png": r"one line \ud800"}
  assert len(read("f.safetensors")[1]) == 5


def test_no_images(images, model):
  with pytest.raises(ValueError, match="no images to take features of"):
    run([], model)


def test_no_image_at_all_says_why(images, model):
  for name in images[:2]:
    open(name, "w").close()
  with pytest.raises(ValueError, match=r"none of the 2 images can be read; the first is 0\.png: "
                                       "cannot identify image file"):
    run(images[:2], model)


@pytest.mark.parametrize("vanished, stops", [(3, True), (2, False)])
def test_images_that_vanish(images, model, monkeypatch, vanished, stops):
  monkeypatch.setattr(extraction, "VANISHED", 3)
  os.mkdir("away")
  for name in images[1:1 + vanished]:
    shutil.move(name, "away")
  if stops:
    with pytest.raises(OSError, match=r"3\.png and the 2 images before it cannot be reached .*No "
                                      "such file.*the same command goes on"):
      run(images, model)
    for name in os.listdir("away"):
      shutil.move(f"away/{name}", name)
    assert run(images, model) == {} and read("f.npy")[1] == images
  else:
    assert list(run(images, model)) == images[1:3]


def test_images_without_permission_do_not_stop_it(images, model, monkeypatch):
  """They are left out, however many: the next try would find no other."""
  def refuse(path):
    raise extraction.DamagedImage(path, "Permission denied") from OSError(errno.EACCES, "denied")

  monkeypatch.setattr(extraction, "VANISHED", 2)
  prepare = Preprocess(size=16)
  monkeypatch.setattr(Preprocess, "__call__", lambda self, path: refuse(path) if path < "4" else (
      np.zeros((16, 16, 3), np.float32)))
  assert len(extract(images, "f.npy", model, prepare, batch_size=2)) == 4


def test_a_full_disk_is_one_line_and_goes_on(images, model, monkeypatch):
  fsync, full = os.fsync, []

  def fail(file):
    if full:
      raise OSError(errno.ENOSPC, "No space left on device")
    fsync(file)

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match=r"f.npy.partial.cls cannot be written \(No space left on "
                                    r"device: .*MB free\): make room"):
    run(images, model, stop=lambda: full.append(1) and False)
  full.clear()
  assert run(images, model) == {}
  run(images, model, out="whole.npy")
  np.testing.assert_array_equal(read("f.npy")[0]["cls"], read("whole.npy")[0]["cls"])


def test_names_that_no_safetensors_file_holds(images, model, monkeypatch):
  monkeypatch.setattr(extraction, "HEADER_BYTES", 30)
  with pytest.raises(ValueError, match=r"6 names do not fit in a \.safetensors file: take \.npy"):
    run(images, model, out="f.safetensors")
  run(images, model)
