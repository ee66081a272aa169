import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dinov3_jax
from dinov3_jax import main
from dinov3_jax.train import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 8  # of the recipe
# The command, but that it sends itself a signal amid the hooks of a step (0: never).
SIGNALLED = """
import os, sys
sys.modules["torch"] = None  # TensorBoard's writer would import it, if only to look
from dinov3_jax import main
from dinov3_jax.train import loop

make_watching = loop.make_watching

def make_signalling(run):
  made, past = make_watching(run)
  observe = made.observe

  def observe_and_signal(step, state):
    observe(step, state)
    if step == {step}:
      os.kill(os.getpid(), {number})

  made.observe = observe_and_signal
  return made, past

loop.make_watching = make_signalling
sys.exit(main.main())
"""


@pytest.fixture
def config(tiny_recipe):
  return tiny_recipe


def run(config, workdir, step=0, number=0):
  """Runs the command in a process of its own, which shares compiled programs with the others."""
  script = SIGNALLED.format(step=step, number=int(number))
  environment = dict(os.environ, JAX_PLATFORMS="cpu", XDG_CACHE_HOME=str(config.parent / "cache"))
  environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=1"  # the last one counts
  del environment["JAX_COMPILATION_CACHE_DIR"]
  return subprocess.run(
    [sys.executable, "-c", script, f"--config={config}", f"--workdir={workdir}"],
    cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def lines_of(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_killed_at_any_step_and_started_again_it_ends_the_same_to_the_last_bit(config, stored,
                                                                               tmp_path):
  """SIGKILL at one random step, SIGTERM at a later one, against a run left in peace."""
  kill, stop = sorted(random.sample(range(1, STEPS), 2))
  print(f"SIGKILL at step {kill}, SIGTERM at step {stop}")
  calm, rough = tmp_path / "calm", tmp_path / "rough"
  done = run(config, calm)
  assert done.returncode == 0, done.stderr
  assert not done.stderr
  assert list((config.parent / "cache" / "dinov3_jax" / "xla").iterdir())

  killed = run(config, rough, step=kill, number=signal.SIGKILL)
  assert killed.returncode == -signal.SIGKILL
  stopped = run(config, rough, step=stop, number=signal.SIGTERM)
  assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
  assert f"stopped by SIGTERM after step {stop}; the same command goes on" in stopped.stdout
  assert checkpoint.latest(rough).name == str(stop)
  finished = run(config, rough)
  assert finished.returncode == 0, finished.stderr
  assert f"going on from {rough}/checkpoints/{stop}" in finished.stdout

  expected, actual = stored(calm), stored(rough)
  assert expected.keys() == actual.keys() and len(expected) > 50
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value, err_msg=name)

  speeds = ("images_per_second", "tflops_per_chip", "mfu", "data_wait")
  timeless = lambda lines: [{k: v for k, v in line.items() if not k.startswith(speeds)}
                            for line in lines]
  assert [line["step"] for line in lines_of(rough)] == list(range(1, STEPS + 1))
  assert timeless(lines_of(rough)) == timeless(lines_of(calm))
  assert "knn_top1" in lines_of(calm)[3] and "knn_top1" in lines_of(calm)[-1]
  for step in (4, STEPS):
    pictures = [Image.open(run / "pictures" / f"step_{step:07d}.png") for run in (calm, rough)]
    np.testing.assert_array_equal(*map(np.asarray, pictures))


def command(monkeypatch, capsys, *arguments):
  """Runs the command in this process up to the point where training would start."""
  from dinov3_jax.train import loop

  def unwanted(run):
    raise AssertionError("training began")

  monkeypatch.setattr(loop, "run", unwanted)
  monkeypatch.setattr(main.console, "set_up", lambda: None)
  monkeypatch.setattr(sys, "argv", ["main", *map(str, arguments)])
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "as it is")
  code = main.main()
  output = capsys.readouterr()
  return code, output.err


@pytest.mark.parametrize("argument, said", [
  ("--config.train.stepz=4", "unknown setting train.stepz; did you mean train.steps?"),
  ("--config.batch_size=4", "unknown setting batch_size; did you mean train.batch_size?"),
  ("--config.zzz=4", "unknown setting zzz; see configs/base.py"),
  ("--config.train.steps=many", "'many'"),
  ("--workdri=x", "'workdri'. Did you mean: workdir"),
  ("stray", "what is stray?"),
])
def test_a_wrong_command_line_gets_one_line(monkeypatch, capsys, config, tmp_path, argument, said):
  code, errors = command(
    monkeypatch, capsys, f"--config={config}", f"--workdir={tmp_path}/run", argument)
  assert code == 2
  assert said in errors and errors.count("\n") == 1
  assert not (tmp_path / "run").exists()


def test_a_wrong_config_file_gets_one_line(monkeypatch, capsys, config, tmp_path):
  wrong = tmp_path / "wrong.py"
  for text, said in (
      (None, f"no config file {wrong}"),
      ("", "no valid config: KeyError: get_config"),
      (config.read_text().replace("log_every", "log_evry"), 'Did you mean "log_every"'),
      ("def get_config(): return {}", "its get_config returns a dict, not a ConfigDict"),
      (config.read_text().replace("(16,)", "(16,"), "SyntaxError")):
    if text is not None:
      wrong.write_text(text)
    code, errors = command(monkeypatch, capsys, f"--config={wrong}", f"--workdir={tmp_path}/run")
    assert code == 2
    assert said in errors and errors.count("\n") == 1
  for missing, arguments in (("--config", [f"--workdir={tmp_path}/run"]),
                             ("--workdir", [f"--config={config}"])):
    code, errors = command(monkeypatch, capsys, *arguments)
    assert code == 2 and errors.startswith(f"error: {missing} is missing")


def test_what_a_recipe_cannot_take_gets_one_line(monkeypatch, capsys, tmp_path):
  for given, said in (("/nowhere", "there is no file or folder /nowhere"),
                      (str(tmp_path), f"{tmp_path} holds no model.safetensors"),
                      ("vitl16plus", "not on the Hugging Face hub")):
    config = f"{ROOT}/configs/adapt.py:{given}"
    code, errors = command(monkeypatch, capsys, f"--config={config}", f"--workdir={tmp_path}/run")
    assert code == 2 and errors.startswith(f"error: {config}: ") and said in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("argument, said", [
  ("--config.data.source=/nowhere", "no folder of images at /nowhere"),
  ("--config.model.in_channels=4", "model.in_channels must be 3, not 4: the images are RGB"),
  ("--config.train.steps=1", "train.steps=1 is too short for schedules.lr.warmup_steps=2, sche"),
  ("--config.crops.global_sizes=(20,)", "global crop size 20 is not a multiple"),
  ("--config.model.num_heads=3", "model.num_heads 3"),
  ("--config.model.ffn=conv", "conv"),
  ("--config.train.remat=some", "train.remat"),
  ("--config.koleo.group=3", "koleo.group"),
  ("--config.init_from=/nowhere", "there is no file or folder /nowhere"),
  ("--config.mesh.data=3", "the mesh data=3"),
  ("--config.schedules.lr.kind=step", "step"),
])
def test_settings_that_cannot_work_get_one_line(monkeypatch, capsys, config, tmp_path, argument,
                                                said):
  code, errors = command(
    monkeypatch, capsys, f"--config={config}", f"--workdir={tmp_path}/run", argument)
  assert code == 1
  assert said in errors and errors.count("\n") == 1
  assert not (tmp_path / "run" / "config.json").exists()


def test_an_unwritable_workdir_gets_one_line(monkeypatch, capsys, config, tmp_path):
  (tmp_path / "file").write_text("keep me")
  code, errors = command(
    monkeypatch, capsys, f"--config={config}", f"--workdir={tmp_path}/file/run")
  assert code == 1
  assert errors.startswith(f"error: cannot write to {tmp_path}/file/run") and "\n" in errors[-1]
  assert errors.count("\n") == 1
  assert (tmp_path / "file").read_text() == "keep me"


@pytest.mark.parametrize("argument, code, said", [
  ("--help", 0, "python -m dinov3_jax.main --config="),
  ("-h", 0, "python -m dinov3_jax.main --config="), ("--version", 0, dinov3_jax.__version__),
  ("--workdir=x", 2, "--config is missing")])
def test_what_needs_no_jax_does_not_import_it(argument, code, said):
  script = ("import sys; from dinov3_jax import main; code = main.main(); "
            "assert 'jax' not in sys.modules; sys.exit(code)")
  done = subprocess.run([sys.executable, "-c", script, argument], cwd=ROOT, capture_output=True,
                        text=True, timeout=60)
  assert done.returncode == code and said in done.stdout + done.stderr


def test_the_function_trains_recipes_with_changes(config, tmp_path, stand_in, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "as it is")
  small = {"train.steps": 4, "health.images": 0, "evals.every": 0,
           "schedules.lr.warmup_steps": 1, "schedules.teacher_temp.warmup_steps": 1}
  state = dinov3_jax.train(config, tmp_path / "run", small)
  assert state.step == 4 and checkpoint.latest(tmp_path / "run").name == "4"
  made = dinov3_jax.recipes.load(config, small)
  assert dinov3_jax.train(made, tmp_path / "run", {"train.steps": 6}).step == 6
  assert made.train.steps == 4
  for settings, wrong in (({"train.stepz": 4}, "did you mean train.steps"),
                          ({"crops.global_sizes": (20,)}, "crop size 20")):
    with pytest.raises(ValueError, match=wrong):
      dinov3_jax.train(config, tmp_path / "other", small | settings)
  with pytest.raises(ValueError, match="no config file nothing: give a file, or one of"):
    dinov3_jax.train("nothing", tmp_path / "other")
