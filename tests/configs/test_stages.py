"""The commands of docs/stages.md are runs that could start."""

import re
import shlex
import sys
from pathlib import Path
from unittest import mock

import jax
import pytest

from configs import base
from dinov3_jax import main
from dinov3_jax.models.variants import VARIANTS
from dinov3_jax.train import sharding
from dinov3_jax.train.settings import check_settings
from dinov3_jax.train.state import init_state
from dinov3_jax.train.step import make_train_step

TEXT = (Path(base.__file__).parents[1] / "docs" / "stages.md").read_text()
COMMANDS = [shlex.split(command)
            for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
            for command in block.replace("\\\n", " ").splitlines() if command]


def parse(argv):
  with mock.patch.object(sys, "argv", argv):  # which is where a config's flags are looked for
    return main.parse(argv)


# The recipe of foreign heads opens its network as soon as it is read, which takes the hub.
TRAININGS = [parse(command[2:]) for command in COMMANDS if command[2] == "dinov3_jax.main"
             and not any("foreign_heads.py:" in argument for argument in command)]
PUBLISHED = {release.repo for row in VARIANTS.values() for release in row.releases.values()}
MADE = {argument.removeprefix("--workdir=") for command in COMMANDS for argument in command
        if argument.startswith("--workdir=")}
WORKDIRS = [values.workdir for values in TRAININGS]


def test_all_commands_are_known():
  assert len(TRAININGS) == 12
  assert {tuple(command[:2]) for command in COMMANDS} == {("python", "-m")}
  assert {command[2] for command in COMMANDS} == {"dinov3_jax.main", "dinov3_jax.export"}
  exported = [command[3] for command in COMMANDS if command[2] == "dinov3_jax.export"]
  assert exported and set(exported) <= set(WORKDIRS)


@pytest.mark.parametrize("values", TRAININGS, ids=WORKDIRS)
def test_a_step_can_be_made(values):
  config = values.config
  check_settings(config)
  config.mesh.update(data=1, fsdp=1)
  batch = sharding.abstract_batch(config, sharding.make_mesh(config, jax.devices()[:1]))
  state = jax.eval_shape(lambda: init_state(config))
  jax.eval_shape(make_train_step(config), state, batch)


@pytest.mark.parametrize("values", TRAININGS, ids=WORKDIRS)
def test_what_it_starts_from_is_made_before(values):
  before = WORKDIRS[:WORKDIRS.index(values.workdir)]
  config = values.config
  assert config.init_from in ("", *PUBLISHED, *before)
  assert config.distill.teacher in ("", *MADE)
  if config.gram.init_from:
    run, _, step = config.gram.init_from.partition("/checkpoints/")
    checkpoint = TRAININGS[WORKDIRS.index(run)].config.checkpoint
    assert run in before and int(step) % checkpoint.keep_every == 0
