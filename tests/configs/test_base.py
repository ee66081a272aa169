"""Every setting is read by the code that runs, not only by what checks or saves settings."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from PIL import Image

from configs import base
from dinov3_jax.train import loop, prepare
from dinov3_jax.train.step import make_train_step


class Recorder:
  """Stands in for a config and notes which settings are read.

  A section turned into a dict has been read as a whole, for what takes its keys as arguments
  refuses others. To save settings (`to_json`) is not to read them.
  """

  def __init__(self, config: ConfigDict, read: set[str], prefix: str = ""):
    self._config, self._read, self._prefix = config, read, prefix

  def __getitem__(self, key):
    value = self._config[key]
    if isinstance(value, ConfigDict):
      return Recorder(value, self._read, f"{self._prefix}{key}.")
    self._read.add(self._prefix + key)
    return value

  def __getattr__(self, key):
    return self[key] if key in self._config else getattr(self._config, key)

  def __contains__(self, key):
    return key in self._config

  def keys(self):
    return self._config.keys()

  def items(self):
    return [(key, self[key]) for key in self.keys()]

  def to_dict(self):
    assert self._prefix, "a whole config as a dict says nothing about what is read"
    settings = self._config.to_dict()
    self._read |= {self._prefix + key for key in flatten_dict(settings, sep=".")}
    return settings


@pytest.fixture
def config(tiny_config, tmp_path):
  """A tiny run that does everything a run can do but Gram losses over a batch."""
  rng = np.random.default_rng(0)
  for split in ("train", "val"):
    for i in range(4):
      path = tmp_path / "images" / split / f"class{i % 2}" / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(path)
  tiny_config.gram.update(teacher="own", refresh_every=1)
  tiny_config.crops.gram_sizes = (64,)
  tiny_config.data.update(source=str(tmp_path / "images"), workers=0)
  tiny_config.koleo.group = 2
  tiny_config.train.update(steps=1, batch_size=16)
  tiny_config.evals.update(every=1, image_size=32, knn_k=1)
  for name in ("lr", "teacher_temp"):
    tiny_config.schedules[name].warmup_steps = 1
  return tiny_config


def test_every_setting_is_read(config, tmp_path, monkeypatch):
  with config.unlocked():
    config.optim.stowaway = 1  # the test sees what it should
  read = set()
  monkeypatch.setattr(prepare, "check_settings", lambda config: None)
  loop.train(Recorder(config, read), tmp_path / "run")

  config.gram.update(teacher="ema", image_level=False, stats=True)
  shape = lambda *dims, dtype=np.float32: jax.ShapeDtypeStruct(dims, dtype)
  batch = dict(global_crops=shape(8, 2, 32, 32, 3), local_crops=shape(8, 3, 16, 16, 3),
               masks=shape(8, 2, 16, dtype=bool), mask_indices=shape(1, 9, dtype=np.int32),
               mask_weights=shape(1, 9))
  state = jax.eval_shape(lambda: prepare.init_state(config))
  jax.eval_shape(make_train_step(Recorder(config, read)), state, batch)

  unread = flatten_dict(config.to_dict(), sep=".").keys() - read
  # Two are asked for where a run starts from weights, or evaluates by tasks: their files say so.
  assert unread == {"optim.stowaway", "init_heads", "evals.task_limit"}
  for file, setting in (("origin.py", "init_heads"), ("tasks.py", "evals.task_limit")):
    assert f"config.{setting}" in (Path(loop.__file__).parent / file).read_text()


def test_every_schedule_is_used():
  # All of them are built; which ones the code asks for, its text says.
  files = ("step.py", "objective.py", "optimizer.py")
  code = "".join((Path(loop.__file__).parent / file).read_text() for file in files)
  assert {name for name in base.get_config().schedules if f'"{name}"' not in code} == set()


def test_optional_settings_are_independent():
  config = base.get_config()
  config.model.rope.rescale = 2.0
  config.gram.max_refreshes = 3
  assert config.model.rope.jitter is None and config.model.rope.min_period is None
  assert config.gram.copy_ema_at is None
  assert base.get_config().model.rope.rescale is None


def test_a_misspelt_setting_is_an_error():
  with pytest.raises(AttributeError, match="batchsize"):
    base.get_config().train.batchsize = 4
