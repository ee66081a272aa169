import jax
import numpy as np
import pytest
from PIL import Image

from dinov3_jax.train import inputs, sharding
from dinov3_jax.train.images import open_images


@pytest.fixture
def config(quick_config):
  return quick_config


@pytest.fixture
def mesh(config):
  return sharding.make_mesh(config)


@pytest.fixture
def labelled(tmp_path):
  """A folder that has a split for training and one that is held out."""
  for split, count in (("train", 5), ("val", 3)):
    for i in range(count):
      path = tmp_path / split / "ab"[i % 2] / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(path)
  return str(tmp_path)


def test_held_out_images_are_opened_where_they_are_evaluated(config, labelled):
  config.data.source = labelled
  assert inputs.open_held_out(config) is None  # evals.every is 0
  config.evals.every = 4
  assert len(inputs.open_held_out(config)) == 3


def test_without_held_out_images_a_line_says_why(config, caplog):
  caplog.set_level("INFO", "dinov3_jax")
  config.evals.every = 4
  assert inputs.open_held_out(config) is None
  (record,) = caplog.records
  assert record.getMessage().startswith("no evaluation: ") and "\n" not in record.getMessage()


def test_a_second_source_is_opened_in_both_splits_or_refused(config, labelled):
  assert inputs.open_general(config) is None
  config.evals.general = labelled
  assert [len(part) for part in inputs.open_general(config)] == [5, 3]
  assert config.data.source != labelled
  config.evals.general = "/nowhere"
  with pytest.raises(ValueError, match=r"evals\.general=/nowhere: .*no folder of images") as caught:
    inputs.open_general(config)
  assert "\n" not in str(caught.value)


def batches(config, mesh, count=2):
  pipeline = inputs.open_pipeline(config, open_images(config, "train"), mesh)
  try:
    return [next(pipeline) for _ in range(count)]
  finally:
    pipeline.close()


def test_batches_are_those_that_the_config_describes(config, mesh):
  config.gram.teacher = "own"
  config.crops.gram_sizes = (24,)
  (batch,) = batches(config, mesh, 1)
  shapes = sharding.abstract_batch(config, mesh)
  assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
    name: (x.shape, x.dtype) for name, x in shapes.items()}


def same(a, b):
  return all((x[name] == y[name]).all() for x, y in zip(a, b) for name in x)


@pytest.mark.parametrize("key, value", [
  ("seed", 1), ("crops.global_scale", (0.1, 0.2)), ("crops.local_scale", (0.9, 1.0)),
  ("crops.color_strength", 0.25), ("crops.horizontal_flip", False),
  ("crops.share_color_jitter", True), ("crops.locals_from_globals", True),
  ("masks.ratio", (0.3, 0.4))])
def test_settings_reach_the_batches(config, mesh, key, value):
  before = batches(config, mesh)
  assert same(before, batches(config, mesh))
  config.update_from_flattened_dict({key: value})
  assert not same(before, batches(config, mesh))


def test_resolutions_are_drawn_by_their_weights(config, mesh):
  config.crops.update(global_sizes=(16, 24), local_sizes=(8, 16), gram_sizes=(0, 0),
                      size_weights=(0.0, 1.0))
  assert {batch["global_crops"].shape[2] for batch in batches(config, mesh, 4)} == {24}
  config.crops.size_weights = (0.5, 0.5)
  sizes = {(batch["global_crops"].shape[2], batch["local_crops"].shape[2])
           for batch in batches(config, mesh, 8)}
  assert sizes == {(16, 8), (24, 16)}


def test_what_is_fetched_is_on_the_devices_and_the_position_is_after_it(config, mesh):
  pipeline = inputs.open_pipeline(config, open_images(config, "train"), mesh)
  first, position = inputs.fetch(pipeline, mesh)
  second, _ = inputs.fetch(pipeline, mesh)
  assert all(x.sharding == sharding.batch_sharding(mesh) for x in first.values())
  pipeline.set_state(position)
  again, _ = inputs.fetch(pipeline, mesh)
  pipeline.close()
  for name in second:
    np.testing.assert_array_equal(jax.device_get(again[name]), jax.device_get(second[name]))
  assert (first["global_crops"] != second["global_crops"]).any()


def test_devices_distort_what_the_host_does_not(config, mesh):
  made = {}
  for colors in ("host", "device"):
    config.data.colors = colors
    pipeline = inputs.open_pipeline(config, open_images(config, "train"), mesh)
    made[colors], position = inputs.fetch(pipeline, mesh)
    pipeline.close()
    assert position == {"step": 1}
  host, device = made["host"], made["device"]
  shapes = sharding.abstract_batch(config, mesh)
  for name, array in device.items():
    assert array.sharding == host[name].sharding and array.dtype == shapes[name].dtype
    difference = np.abs(np.asarray(array, float) - np.asarray(host[name], float))
    assert difference.mean() < 0.5 and (difference <= 3).mean() > 0.98
  config.data.colors = "hosts"
  with pytest.raises(ValueError, match="colors must be host or device, not 'hosts'"):
    inputs.open_pipeline(config, open_images(config, "train"), mesh)
