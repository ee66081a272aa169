"""Training in processes of their own that kill themselves, and what must not come of it."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
# A run that kills itself amid the hooks of a step, of a family those of one student.
SCRIPT = """
import os, signal
from dinov3_jax.train import loop
{recipe}
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


def train(recipe: str, changes: dict, workdir: pathlib.Path,
          kill: tuple[int, str] | None = None) -> tuple[int, str]:
  """Trains on one device of the CPU, or goes on with it.

  Args:
    recipe: lines of Python that make `config`.
    changes: of its settings, by their whole names.
    workdir: the run's folder.
    kill: the step, and the name of the folder of that run or student, at which it kills itself.

  Returns:
    The exit code, and what the process said.
  """
  script = SCRIPT.format(recipe=recipe, changes=changes, workdir=str(workdir), kill=kill)
  environment = dict(os.environ, JAX_PLATFORMS="cpu")
  environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"  # the last one counts
  done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment,
                        capture_output=True, text=True, timeout=600)
  return done.returncode, done.stderr


def logged(workdir: pathlib.Path) -> list[dict]:
  """The lines of metrics.jsonl."""
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def check_kills(recipe: str, changes: dict, folder: pathlib.Path, kills: list[tuple[int, str]],
                stored, students: str = "") -> tuple[pathlib.Path, pathlib.Path]:
  """Killed as often as that, a run ends as one that was left in peace, to the last bit.

  Args:
    recipe, changes: see `train`; every step must be logged.
    folder: for both runs, which are called calm and rough.
    kills: see `train`; the rough run is killed at each of them.
    stored: the fixture that reads checkpoints.
    students: the letters that are the names of a family; none for a single run.

  Returns:
    The folders of the calm and the rough run.
  """
  calm, rough = folder / "calm", folder / "rough"
  code, said = train(recipe, changes, calm)
  assert code == 0, said
  for kill in kills:
    code, said = train(recipe, changes, rough, kill)
    assert code == -signal.SIGKILL, said
  code, said = train(recipe, changes, rough)
  assert code == 0, said
  for name in students or [""]:
    expected, actual = stored(calm / name), stored(rough / name)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
      np.testing.assert_array_equal(actual[key], value, err_msg=f"{name} {key}")
    losses = [{line["step"]: line["loss"] for line in logged(run / name) if "loss" in line}
              for run in (calm, rough)]
    assert losses[0] == losses[1]
    assert list(losses[0]) == list(range(1, changes["train.steps"] + 1))
  return calm, rough
