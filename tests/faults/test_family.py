"""SIGKILL while a family learns, and while a run of several resolutions does."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.distilled import TINY, write_run

ROOT = pathlib.Path(__file__).parents[2]
# A run that kills itself amid the hooks of a step (-1: never), of a family those of one student.
SCRIPT = """
import os, runpy, signal
from configs import vits16_highres
from dinov3_jax.train import loop
tiny_family = runpy.run_path("tests/distilled.py")["tiny_family"]
config = {config}
config.update_from_flattened_dict({changes!r})
make_watching = loop.make_watching

def make_killing(run):
  made, past = make_watching(run)
  observe = made.observe

  def observe_and_die(step, state):
    found = observe(step, state)
    if (step, run.workdir.name) == {kill!r}:
      os.kill(os.getpid(), signal.SIGKILL)
    return found

  made.observe = observe_and_die
  return made, past

loop.make_watching = make_killing
loop.train(config, {workdir!r})
"""
MIXED = {"crops.global_sizes": (32, 16), "crops.local_sizes": (16, 8),
         "crops.size_weights": (0.5, 0.5), "train.steps": 8, "train.batch_size": 4,
         "checkpoint.every": 2, "checkpoint.keep": 2, "log_every": 1, "health.images": 0}


def train(config, changes, workdir, kill=(-1, "")):
  """The exit code, and what the process said."""
  script = SCRIPT.format(config=config, changes=changes, workdir=str(workdir), kill=kill)
  environment = dict(os.environ, JAX_PLATFORMS="cpu")
  environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"  # the last one counts
  done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment,
                        capture_output=True, text=True, timeout=300)
  return done.returncode, done.stderr


def logged(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [(line["step"], line["loss"]) for line in lines]


def check_kills(config, changes, tmp_path, kills, students, stored):
  """Killed as often as that, it ends as one that was left in peace, to the last bit."""
  calm, rough = tmp_path / "calm", tmp_path / "rough"
  code, said = train(config, changes, calm)
  assert code == 0, said
  for kill in kills:
    code, said = train(config, changes, rough, kill)
    assert code == -signal.SIGKILL, said
  code, said = train(config, changes, rough)
  assert code == 0, said
  for name in students:
    expected, actual = stored(calm / name), stored(rough / name)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
      np.testing.assert_array_equal(actual[key], value, err_msg=f"{name} {key}")
    assert logged(calm / name) == logged(rough / name)
    assert [step for step, _ in logged(calm / name)] == list(range(1, 9))


@pytest.mark.slow
def test_a_family_of_two_resolutions(quick_images, teacher_run, tmp_path, stored):
  """Killed when one student's checkpoint is begun and the other's not, and when both are."""
  config = f"tiny_family({quick_images!r}, {str(teacher_run)!r})"
  kills = [(4, "a"), (6, "b")]
  check_kills(config, MIXED | {"crops.gram_sizes": (0, 0)}, tmp_path, kills, "ab", stored)


@pytest.mark.slow
def test_the_high_resolution_stage(quick_images, tmp_path, stored):
  """In miniature: the recipe of mixed crops and a Gram teacher, from the run before."""
  from configs import vits16_highres
  changes = TINY | MIXED | {
    "crops.gram_sizes": (48, 24), "data.source": quick_images, "koleo.group": 2,
    "schedules.lr.cosine_steps": 4, "init_from": str(tmp_path / "before")}
  config = vits16_highres.get_config()
  config.update_from_flattened_dict(changes)
  write_run(tmp_path / "before", config)
  check_kills("vits16_highres.get_config()", changes, tmp_path, [(5, "rough")], [""], stored)
