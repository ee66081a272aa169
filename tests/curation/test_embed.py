import json
import logging
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from PIL import Image

import dinov3_jax
from dinov3_jax.curation import embed as module
from dinov3_jax.curation.embed import embed
from dinov3_jax.data.preprocess import preprocess
from dinov3_jax.data.sources import open_source
from dinov3_jax.evals.backbone import open_model
from dinov3_jax.models.variants import VARIANTS, Variant


@pytest.fixture(autouse=True)
def small_variant(monkeypatch):
  settings = dict(width=32, depth=2, num_heads=2, patch_size=8, storage_tokens=1, layerscale=1.0)
  monkeypatch.setitem(VARIANTS, "vits16", Variant(settings, VARIANTS["vits16"].releases))


@pytest.fixture
def images(tmp_path):
  """Twenty images, one of them damaged."""
  rng = np.random.default_rng(0)
  folder = tmp_path / "images"
  folder.mkdir()
  for i in range(20):
    Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(folder / f"{i:02}.png")
  (folder / "13.png").write_bytes(b"no image")
  return folder


def run(images, folder, mesh=None, **settings):
  model, prepare = open_model("random", "vits16", 16, mesh=mesh)
  source = open_source(images, "all")
  return embed(source, folder, model, prepare, spec=str(images), mesh=mesh, **settings)


def test_features_are_the_models(images, tmp_path):
  shares = []
  store = run(images, tmp_path / "f", batch_size=4, shard_items=8,
              report=lambda share, text: shares.append(share))
  assert (store.rows, store.shards, store.dim) == (19, 3, 32)
  names = [f"{i:02}.png" for i in range(20) if i != 13]
  assert store.names(np.arange(19)) == names
  assert list(store.damaged()) == ["13.png"] and "identify" in store.damaged()["13.png"]
  assert shares == [0.2, 0.4, 0.6, 0.8, 1]
  prepare = preprocess(size=16)
  expected = dinov3_jax.load("vits16")(np.stack([prepare(images / name) for name in names]))["cls"]
  chex.assert_trees_all_close(store.take(np.arange(19)), np.asarray(expected, np.float16),
                              atol=2e-3)
  assert store.notes["source"] == str(images)


def test_only_what_is_cut_or_missing_is_made_again(images, tmp_path, monkeypatch, caplog):
  store = run(images, tmp_path / "f", shard_items=8)
  whole = store.take(np.arange(19))
  written = []
  write = module.Store.write
  monkeypatch.setattr(module.Store, "write",
                      lambda self, shard, *rest: written.append(shard) or write(self, shard, *rest))
  run(images, tmp_path / "f", shard_items=8)
  assert written == []
  file = store.folder / "00001.npy"
  file.write_bytes(file.read_bytes()[:200])
  (store.folder / "00002.json").unlink()
  with caplog.at_level(logging.WARNING):
    again = run(images, tmp_path / "f", shard_items=8)
  assert written == [1, 2] and "00001.npy is cut or damaged: it is made again" in caplog.text
  np.testing.assert_array_equal(again.take(np.arange(19)), whole)


def test_devices_do_not_matter(images, tmp_path):
  mesh = jax.make_mesh((8, 1, 1), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
  stores = [run(images, tmp_path / str(i), m, batch_size=5) for i, m in enumerate((None, mesh))]
  chex.assert_trees_all_close(*(store.take(np.arange(19)) for store in stores), atol=2e-3)


def test_another_job_or_nothing_to_read(images, tmp_path):
  run(images, tmp_path / "f")
  (images / "19.png").unlink()
  with pytest.raises(ValueError, match=r"made with other settings \(items\)"):
    run(images, tmp_path / "f")
  for file in images.iterdir():
    file.write_bytes(b"")
  with pytest.raises(ValueError, match="none of its images could be read"):
    run(images, tmp_path / "g")
  assert json.loads((tmp_path / "g" / "00000.json").read_text())["rows"] == 0


def in_folders(images):
  """Moves the images 06 to 11 into a folder of their own."""
  (images / "sub").mkdir()
  for i in range(6, 12):
    (images / f"{i:02}.png").rename(images / "sub" / f"{i:02}.png")


@pytest.mark.parametrize("away", ["sub", "."])
def test_images_that_cannot_be_reached_are_no_damaged_ones(images, tmp_path, monkeypatch, away):
  """A folder goes away while they are read: below the source, or the source as a mount point does,
  which leaves an empty folder."""
  in_folders(images)
  whole, gone, kept = run(images, tmp_path / "w", shard_items=8), images / away, tmp_path / "away"
  real = module.mark

  def going(source, item):
    if item >= 9 and not kept.exists():
      gone.rename(kept)
      if away == ".":
        images.mkdir()
    return real(source, item)

  monkeypatch.setattr(module, "ThreadPoolExecutor", lambda: ThreadPoolExecutor(1))
  monkeypatch.setattr(module, "mark", going)
  gone = gone.resolve()
  with pytest.raises(OSError, match=r"png cannot be reached .*its folder is away or empty: see "
                     "that the images are there, and the same command goes on from here"):
    run(images, tmp_path / "f", shard_items=8, batch_size=2)
  assert [path.name for path in sorted((tmp_path / "f").glob("0*.json"))] == ["00000.json"]
  monkeypatch.setattr(module, "mark", real)
  if away == ".":
    images.rmdir()
  kept.rename(gone)
  store = run(images, tmp_path / "f", shard_items=8)
  assert list(store.damaged()) == ["13.png"] and store.fingerprint == whole.fingerprint
  np.testing.assert_array_equal(store.take(np.arange(19)), whole.take(np.arange(19)))


def test_damaged_images_are_read_again(images, tmp_path, monkeypatch, caplog):
  good = (images / "05.png").read_bytes()
  (images / "05.png").write_bytes(b"half")
  assert list(run(images, tmp_path / "f", shard_items=8).damaged()) == ["05.png", "13.png"]
  (images / "05.png").write_bytes(good)
  read, real = [], module._batches
  monkeypatch.setattr(module, "_batches", lambda source, items, *rest: read.extend(items) or real(
    source, items, *rest))
  with caplog.at_level(logging.WARNING):
    store = run(images, tmp_path / "f", shard_items=8)
  assert read == [5, 13] and "1 images that were damaged can be read now" in caplog.text
  whole = run(images, tmp_path / "w", shard_items=8)
  assert list(store.damaged()) == ["13.png"] and store.fingerprint == whole.fingerprint
  chex.assert_trees_all_close(store.take(np.arange(19)), whole.take(np.arange(19)), atol=2e-3)


def test_other_images_are_refused(images, tmp_path):
  run(images, tmp_path / "f", shard_items=8)
  (images / "00.png").rename(images / "zz.png")
  with pytest.raises(ValueError, match=r"other images than before \(01.png where 00.png was\): "
                     "delete .*f, or choose another --dir"):
    run(images, tmp_path / "f", shard_items=8)
  (images / "zz.png").rename(images / "00.png")
  run(images, tmp_path / "f", shard_items=8)
  (images / "05.png").write_bytes((images / "06.png").read_bytes())
  with pytest.raises(ValueError, match=r"changed since they were read, among 00.png to 07.png: "
                     "delete .*f, or choose another --dir"):
    run(images, tmp_path / "f", shard_items=8)


def test_shards_of_the_first_version_are_told_by_their_names(images, tmp_path):
  """They say nothing of marks."""
  run(images, tmp_path / "f", shard_items=8)
  for path in (tmp_path / "f").glob("0*.json"):
    notes = json.loads(path.read_text())
    del notes["marks"]
    path.write_text(json.dumps(notes))
  (images / "05.png").touch()
  assert run(images, tmp_path / "f", shard_items=8).rows == 19
  (images / "05.png").rename(images / "zz.png")
  with pytest.raises(ValueError, match="other images than before"):
    run(images, tmp_path / "f", shard_items=8)
