"""The recipes of text: their settings are read, fit together, and state their commands."""

import importlib
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict

from configs import base
from dinov3_jax.main import preparing
from dinov3_jax.text import training
from dinov3_jax.text.settings import check_settings
from dinov3_jax.train import loop
from tests.configs.test_base import Recorder

FOLDER = Path(base.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("dinotxt*.py"))


def config_of(name):
  return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_can_start_and_says_how(name):
  config = config_of(name)
  assert config.is_locked
  check_settings(config)
  assert config.checkpoint.keep_every % config.checkpoint.every == 0
  assert f"--config=configs/{name}.py --workdir=runs/" in (FOLDER / f"{name}.py").read_text()
  assert preparing(config) is training.prepare_text
  assert preparing(base.get_config()) is loop.prepare


def test_recipes_have_the_same_settings():
  first, *others = (flatten_dict(config_of(name).to_dict()).keys() for name in NAMES)
  assert all(other == first for other in others)


def test_the_papers_numbers():
  config = config_of("dinotxt_vitl16")
  assert (config.train.steps, config.train.batch_size) == (50_000, 65_536)
  assert config.schedules.lr.peak == 7e-4 and config.schedules.lr.warmup_steps == 2000
  assert (config.schedules.weight_decay.peak, config.optim.b1, config.optim.b2) == (1e-4, 0.9, 0.99)


def test_every_setting_is_read(text_config, tmp_path, monkeypatch, one_device):
  with text_config.unlocked():
    text_config.optim.stowaway = 1  # the test sees what it should
  text_config.train.steps = 1
  text_config.evals.every = 1
  text_config.gram.weight = 0.5
  text_config.features.update(views=1, folder=str(tmp_path / "features"))
  read = set()
  monkeypatch.setattr(training, "check_settings", lambda config: None)
  monkeypatch.setattr(training, "with_backbone", lambda config, frozen: config)
  loop.train(Recorder(text_config, read), tmp_path, prepare=training.prepare_text)
  unread = flatten_dict(text_config.to_dict(), sep=".").keys() - read
  assert unread == {"optim.stowaway"}
