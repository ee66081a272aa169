import importlib.util
import json
import logging

import jax
import numpy as np
import pytest
from flax import nnx

from configs import base
from dinov3_jax.data.sources import DamagedImage
from dinov3_jax.evals.rankme import rankme
from dinov3_jax.train import health, loop, sharding
from dinov3_jax.train.evaluation import read_images
from dinov3_jax.train.state import abstract_modules, init_state

COUNT = 12


class Images(list):
  """Coloured noise; some of it may be damaged."""

  def __init__(self, seed=0, damaged=()):
    rng = np.random.default_rng(seed)
    super().__init__(rng.integers(0, 256, (COUNT, 40, 44, 3)).astype(np.uint8))
    self.damaged = damaged

  def __getitem__(self, index):
    if index in self.damaged:
      raise DamagedImage(str(index), "of noise")
    return dict(image=super().__getitem__(index), label=-1)


@pytest.fixture
def config(tiny_config):
  tiny_config.log_every = 5
  tiny_config.health.update(images=COUNT, reference_at=10)
  return tiny_config


@pytest.fixture
def states(config):
  """Two of different teachers."""
  made = []
  for config.seed in (0, 1):
    made.append(jax.jit(lambda: init_state(config))())
  return made


def make(config, folder, source=None, devices=1, **options):
  mesh = sharding.make_mesh(config, jax.devices()[:devices])
  return health.Health(config, folder, mesh, source or Images(), **options)


def look(made, step, state):
  metrics = {}
  made(step, state, metrics)
  return metrics


def by_hand(config, state, source, size=32):
  """CLS features, and the cosines of patches."""
  graphs, _ = abstract_modules(config)
  batch = next(read_images(source, range(COUNT), size, COUNT))
  images = batch["images"][batch["found"]] / 255
  images = (images - np.array(config.crops.mean)) / np.array(config.crops.std)
  tokens = nnx.merge(graphs["backbone"], state.teacher["backbone"])(np.float32(images))
  patches = np.float64(tokens["patches"])
  patches /= np.linalg.norm(patches, axis=-1, keepdims=True)
  return tokens["cls"], patches @ patches.swapaxes(1, 2)


def test_figures_as_by_hand(config, states, tmp_path):
  made = make(config, tmp_path)
  assert look(made, 5, states[0]).keys() == {"rankme"}  # there is no reference yet
  first, second = look(made, 10, states[0]), look(made, 15, states[1])
  assert first["gram_drift"] == 0
  (cls, before), (cls_after, after) = (by_hand(config, state, Images()) for state in states)
  assert first["rankme"] == pytest.approx(rankme(cls), rel=1e-4)
  assert second["rankme"] == pytest.approx(rankme(cls_after), rel=1e-4)
  assert second["gram_drift"] == pytest.approx(((after - before)**2).mean()**0.5, rel=1e-3)


def test_the_same_on_eight_devices(config, states, tmp_path):
  figures = []
  for devices in (1, 8):
    made = make(config, tmp_path / str(devices), devices=devices)
    (tmp_path / str(devices)).mkdir()
    look(made, 10, states[0])
    figures.append(look(made, 15, states[1]))
  assert figures[0] == pytest.approx(figures[1], rel=1e-4)


def test_only_steps_that_log_and_the_last_are_looked_at(config, states, tmp_path):
  config.train.steps = 102
  config.health.reference_at = 3
  made = make(config, tmp_path)
  seen = [step for step in range(103) if look(made, step, states[0])]
  assert seen == sorted({3, *range(5, 101, 5), 102})


def test_a_start_from_weights_is_the_reference(config, states, tmp_path):
  config.health.reference_at = 0
  made = make(config, tmp_path)
  assert look(made, 0, states[0]) == {}  # no line of metrics has step 0
  assert look(made, 5, states[0])["gram_drift"] == 0
  assert look(made, 10, states[1])["gram_drift"] > 0


def test_a_restart_keeps_the_reference(config, states, tmp_path):
  made = make(config, tmp_path)
  look(made, 10, states[0])
  expected = look(made, 15, states[1])
  again = make(config, tmp_path, start=12)
  assert look(again, 15, states[1]) == expected
  # What is written already is not written twice.
  assert look(make(config, tmp_path, start=15, done=15), 15, states[1]) == {}
  # From before the reference it is made again.
  again = make(config, tmp_path, start=8)
  assert "gram_drift" not in look(again, 9, states[0]) | look(again, 5, states[0])
  assert look(again, 10, states[1])["gram_drift"] == 0


@pytest.mark.parametrize("before, after", [(1, 4), (4, 1)])
def test_a_restart_on_more_or_fewer_devices_keeps_the_reference(config, states, tmp_path, before,
                                                                after, monkeypatch):
  """Also if a batch has other images then."""
  monkeypatch.setattr(health, "BATCH", 2)
  made = make(config, tmp_path, devices=before)
  look(made, 10, states[0])
  expected = look(made, 15, states[1])["gram_drift"]
  again = make(config, tmp_path, devices=after, start=12)
  assert look(again, 15, states[1])["gram_drift"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("fault", ["missing", "cut", "no archive", "other images"])
def test_without_its_reference_drift_begins_anew(config, states, tmp_path, caplog, fault):
  look(make(config, tmp_path), 10, states[0])
  path, source = tmp_path / health.FILE, None
  if fault == "missing":
    path.unlink()
  elif fault == "cut":
    path.write_bytes(path.read_bytes()[:200])
  elif fault == "no archive":
    path.write_text("no archive")
  else:
    source = Images(seed=1)
  made = make(config, tmp_path, source, start=12)
  with caplog.at_level(logging.INFO):
    assert look(made, 15, states[1])["gram_drift"] == 0
  said = dict(missing=[], cut=["cannot be read"], other=["of other images"])
  for part in [*said.get(fault.split()[0], ["cannot be read"]), "gram_drift is from step 15"]:
    assert part in caplog.text
  assert look(made, 20, states[0])["gram_drift"] > 0
  # And that is what the next restart finds.
  assert look(make(config, tmp_path, source, start=20), 25, states[1])["gram_drift"] == 0


def test_damaged_images_are_left_out(config, states, tmp_path, caplog):
  made = make(config, tmp_path, Images(damaged=(0, 7)))
  assert look(made, 5, states[0])["rankme"] == pytest.approx(
    rankme(by_hand(config, states[0], Images(damaged=(0, 7)))[0]), rel=1e-4)
  made = make(config, tmp_path, Images(damaged=range(COUNT)))
  assert look(made, 5, states[0]) == {}
  assert "none of the 12 images can be read" in caplog.text


def test_large_crops_are_looked_at_in_small(config, states, tmp_path):
  config.crops.global_sizes = (32 * 8 * 8,)
  made = make(config, tmp_path)
  look(made, 10, states[0])
  with np.load(tmp_path / health.FILE) as arrays:
    assert arrays["grams"].shape == (1, COUNT, 256, 256)


def test_of_a_convnext(config, tmp_path):
  """Its patches are 32 pixels wide, and its parameters are not stacked in blocks."""
  with config.unlocked():
    config.model = base.convnext((1, 1, 1, 1), (8, 8, 16, 16))
  config.crops.global_sizes = (96,)
  states = []
  for config.seed in (0, 1):
    states.append(jax.jit(lambda: init_state(config))())
  figures = []
  for devices in (1, 2):
    folder = tmp_path / str(devices)
    folder.mkdir()
    made = make(config, folder, devices=devices)
    look(made, 10, states[0])
    figures.append(look(made, 15, states[1]))
    with np.load(folder / health.FILE) as arrays:
      assert arrays["grams"].shape[-2:] == (9, 9)
  (_, before), (cls, after) = (by_hand(config, state, Images(), 96) for state in states)
  assert figures[0]["rankme"] == pytest.approx(rankme(cls), rel=1e-4)
  assert figures[0]["gram_drift"] == pytest.approx(((after - before)**2).mean()**0.5, rel=1e-3)
  assert figures[1] == pytest.approx(figures[0], rel=1e-4)


@pytest.mark.slow
def test_a_run_writes_them_down(tiny_recipe, tmp_path):
  spec = importlib.util.spec_from_file_location("tiny", tiny_recipe)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  loop.train(module.get_config(), tmp_path)
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  for line in lines:
    assert 1 <= line["rankme"] <= 8 and -1 <= line["cls_patch_cosine"] <= 1
    assert 0 <= line["prototype_entropy"] <= 1 and 1 / 32 <= line["prototype_use"] <= 1
  assert [line.get("gram_drift", -1) >= 0 for line in lines] == [False] + 7 * [True]
  assert lines[1]["gram_drift"] == 0 and lines[-1]["gram_drift"] > 0
