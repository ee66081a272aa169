import json
import logging

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
