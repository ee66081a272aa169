import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from dinov3_jax.costs.flops import CHIPS, StepFlops

ROOT = pathlib.Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gpu)


def search(guess, fits, limit=1e9, most=64, an_image=1):
  """The batch that is found where batches up to `fits` go well, and those that were attempted."""
  tried = []

  def attempt(batch):
    tried.append(batch)
    return None if batch > fits else (100 + an_image * batch, 100)

  return gpu.largest(attempt, guess, limit, most), tried


@pytest.mark.parametrize("guess, fits, found, tried", [
  (4, 20, 16, [4, 8, 16, 32]),
  (16, 20, 16, [16, 32]),
  (32, 20, 16, [32, 16]),  # not 32 again
  (8, 1, 1, [8, 4, 2, 1]),
  (2, 0, None, [2, 1]),
  (16, 1000, 64, [16, 32, 64])])
def test_the_largest_batch_is_found(guess, fits, found, tried):
  assert search(guess, fits) == (found, tried)


def test_a_batch_that_clearly_does_not_fit_is_not_attempted():
  # 8 images take 108 bytes, of which 100 do not grow; 16 would take 116, and 32 of them 132.
  assert search(8, 1000, limit=120) == (16, [8, 16])


def test_larger_models_begin_with_smaller_batches():
  guesses = [gpu.first_guess(gpu.MODELS[name], 8, 70e9) for name in ("ViT-L", "ViT-B", "ViT-S")]
  assert guesses == sorted(guesses) and guesses[0] < guesses[-1]
  assert all(guess & guess - 1 == 0 for guess in guesses)
  assert gpu.first_guess(gpu.MODELS["ViT-L"], 8, 1e6) == 1


def test_utilisation_is_told_of_cards_that_are_known():
  flops = StepFlops(full=4e12, executed=3e12)
  known = gpu.figures(0.5, 16, flops, 20e12)
  assert known == dict(seconds=0.5, images_per_second=32, tflops_per_second=6,
                       model_utilisation=0.4, executed_utilisation=0.3)
  assert gpu.figures(0.5, 16, flops, None).keys() == {
    "seconds", "images_per_second", "tflops_per_second"}


def test_peaks_agree_with_those_of_training():
  both = gpu.PEAKS.keys() & CHIPS.keys()
  assert {name for name in CHIPS if name.startswith("NVIDIA")} == both
  assert all(gpu.PEAKS[name] == CHIPS[name].flops for name in both)


def test_a_worker_that_ends_and_one_that_takes_too_long():
  import multiprocessing
  kept = []
  here, there = multiprocessing.Pipe(duplex=False)
  there.send(dict(kind="note"))
  assert not gpu.collect(here, 0.05, kept.append)
  there.send(dict(kind="full"))
  there.close()
  assert gpu.collect(here, 60, kept.append)
  assert [record["kind"] for record in kept] == ["note", "full"]


def test_the_recipe_is_that_of_imagenet():
  config = gpu.make_config("ViT-S", 32)
  assert (config.model.width, config.crops.locals, config.koleo.group) == (384, 8, 32)
  assert (config.train.dtype, config.model.drop_path) == ("bfloat16", 0.3)
  assert gpu.make_config("ViT-L", 128).koleo.group == 64


def test_the_command_measures_a_tiny_network_on_a_cpu(tmp_path):
  out = tmp_path / "gpu.jsonl"
  environment = os.environ | dict(JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
  done = subprocess.run(
    [sys.executable, ROOT / "benchmarks" / "gpu.py", "--tiny", "--rounds=2", f"--out={out}"],
    env=environment, capture_output=True, text=True, timeout=500, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in out.read_text().splitlines()]
  kinds = [record["kind"] for record in records]
  assert kinds == ["machine", "step", "note", "part", "part", "part", "option"]
  _, step, note, *parts, option = records
  assert step["batch"] == 2 and step["seconds"] > 0 and step["memory"] > 0
  assert "model_utilisation" not in step  # a CPU is not among the cards
  assert note["text"] == ("cuDNN's attention: attention 'cudnn' is for NVIDIA GPUs, not for a cpu: "
                          "take 'auto'")
  assert [part["name"] for part in parts] == ["backbone", "update", "heads and losses"]
  assert sum(part["seconds"] for part in parts) == pytest.approx(step["seconds"])
  assert option["ratio"] > 0
  assert "| tiny | 2 |" in done.stdout and f"- {note['text']}" in done.stdout
  assert "option turned off" in done.stdout
