import logging
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3_jax.data.decode import DamagedImage
from dinov3_jax.text import backbone as backbones
from dinov3_jax.text import cached
from dinov3_jax.text.cached import CachedPairs, fingerprint, open_cached, tokens_of
from dinov3_jax.text.step import make_features
from dinov3_jax.text.stream import Windows
from dinov3_jax.text.training import open_split, with_backbone
from dinov3_jax.train import sharding

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def prepared(text_config, tmp_path):
  """Settings of a run with cached features, its pairs, its backbone, and its devices."""
  text_config.features.update(views=2, folder=str(tmp_path / "features"))
  mesh = sharding.make_mesh(text_config)
  frozen = backbones.read(text_config.backbone.weights, "", mesh)
  config = with_backbone(text_config, frozen)
  return config, open_split(config, "train"), frozen, mesh


def test_features_are_those_of_the_views(prepared):
  config, pairs, frozen, mesh = prepared
  found = open_cached(pairs, frozen, config, mesh)
  assert len(found) == 24 and found.dtype == np.float32
  features = jax.jit(make_features(config, frozen.settings))
  for i in (0, 23):
    assert found[i]["captions"] == pairs[i]["captions"]
    views = [Windows.of(config.images)(pairs[i], np.random.default_rng([config.seed, i, view]))
             for view in range(2)]
    expected = features(frozen.params, np.stack(views))
    got = tokens_of(found[i]["features"], frozen.settings.get("storage_tokens", 0))
    for name, x in expected.items():
      np.testing.assert_allclose(got[name], x, atol=1e-5, err_msg=name)
  again = pickle.loads(pickle.dumps(found))
  np.testing.assert_array_equal(again[5]["features"], found[5]["features"])
  assert len(pickle.dumps(found)) < 10_000  # workers map the file


def test_bfloat16_is_kept_as_it_is(prepared):
  config, pairs, frozen, mesh = prepared
  exact = open_cached(pairs, frozen, config, mesh)
  config.train.dtype = "bfloat16"
  rounded = open_cached(pairs, frozen, config, mesh)
  assert rounded.dtype == rounded[0]["features"].dtype == jnp.bfloat16
  assert rounded.shape == exact.shape
  np.testing.assert_allclose(np.float32(rounded[9]["features"]), exact[9]["features"], atol=0.1)


def test_they_are_computed_once_for_the_same_job(prepared, caplog, monkeypatch, tmp_path):
  config, pairs, frozen, mesh = prepared
  caplog.set_level(logging.INFO)
  first = open_cached(pairs, frozen, config, mesh)
  with monkeypatch.context() as patch:
    patch.setattr(cached, "_compute", lambda *_: pytest.fail("computed again"))
    again = open_cached(pairs, frozen, config, mesh)
  np.testing.assert_array_equal(first[3]["features"], again[3]["features"])
  assert "the backbone's features come from" in caplog.text
  assert sorted(path.suffix for path in (tmp_path / "features").iterdir()) == [".json", ".npy"]
  computed = []
  monkeypatch.setattr(cached, "_compute", lambda *arguments: computed.append(arguments[4]))
  monkeypatch.setattr(cached, "CachedPairs", lambda *_: None)
  for change in ({"images.scale": (0.5, 1.0)}, {"features.views": 3}, {"seed": 12},
                 {"train.dtype": "bfloat16"}):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict(change)
    open_cached(pairs, frozen, other, mesh)
  frozen.digest = "0" * 16
  open_cached(pairs, frozen, config, mesh)
  assert len(set(computed)) == 5


def test_other_images_under_the_same_names_are_noticed(prepared, tmp_path):
  config, pairs, *_ = prepared
  before = fingerprint(pairs, config.data)
  assert before == fingerprint(open_split(config, "train"), config.data)
  config.data.background = "white"
  assert fingerprint(pairs, config.data) != before
  config.data.background = ""
  path = pairs.images.root / pairs.images.paths()[int(pairs.chosen[7])]
  content = path.read_bytes()
  try:
    path.write_bytes(content + b"\0")
    assert fingerprint(pairs, config.data) != before
  finally:
    path.write_bytes(content)


def test_what_was_stopped_is_gone_on_with(prepared, monkeypatch):
  config, pairs, frozen, mesh = prepared
  monkeypatch.setattr(cached, "VIEWS", 16)  # eight images at once
  batches, started = cached._batches, []

  def stopped(*arguments):
    started.append(arguments[-1])
    for batch in batches(*arguments):
      yield batch
      if len(started) == 1:
        raise KeyboardInterrupt

  monkeypatch.setattr(cached, "_batches", stopped)
  with pytest.raises(KeyboardInterrupt):
    open_cached(pairs, frozen, config, mesh)
  found = open_cached(pairs, frozen, config, mesh)
  assert started == [0, 8]
  config.features.folder += "2"
  whole = open_cached(pairs, frozen, config, mesh)
  for i in range(24):
    np.testing.assert_array_equal(found[i]["features"], whole[i]["features"])


def test_damaged_images_have_no_features(prepared, caplog):
  config, pairs, frozen, mesh = prepared

  class Torn:
    """Pairs of which the second cannot be read, or none at all."""

    captions, chosen, images, torn = pairs.captions, pairs.chosen, pairs.images, {1}

    def __len__(self):
      return len(pairs)

    def __getitem__(self, index):
      if index in self.torn:
        raise DamagedImage("one.png", "it is torn")
      return pairs[index]

  found = open_cached(Torn(), frozen, config, mesh)
  assert isinstance(found, CachedPairs) and "one.png cannot be read: it is torn" in caplog.text
  with pytest.raises(DamagedImage, match="could not be read when the backbone's features"):
    found[1]
  whole = open_cached(pairs, frozen, config, mesh)
  np.testing.assert_array_equal(found[2]["features"], whole[2]["features"])
  torn = Torn()
  torn.torn = range(24)
  with pytest.raises(ValueError, match="none of the 24 images can be read"):
    open_cached(torn, frozen, config, mesh)


def test_what_cannot_be_kept_is_told_before(prepared, monkeypatch):
  config, pairs, frozen, mesh = prepared
  monkeypatch.setattr(cached.shutil, "disk_usage", lambda _: type("", (), dict(free=1000))())
  with pytest.raises(OSError, match=r"are free: set features\.folder, or fewer features\.views"):
    open_cached(pairs, frozen, config, mesh)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match=r"features\.views is 2, and the cache is for runs of one"):
    open_cached(pairs, frozen, config, mesh)
