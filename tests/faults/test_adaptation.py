"""SIGKILL while somebody's weights are adapted: with the backbone frozen, rising, and free."""

import json

import jax
import pytest

from configs import base
from dinov3_jax.train.state import init_state
from dinov3_jax.train.writer import Writer
from dinov3_jax.weights.exporting import export
from tests.killed import check_kills, logged

STEPS, FREEZE, RAMP = 9, 3, 3


@pytest.fixture(scope="module")
def weights(tiny_recipe, tmp_path_factory):
  """A tiny backbone in a file, without heads."""
  folder = tmp_path_factory.mktemp("weights")
  config = base.get_config()
  config.model.update(width=16, depth=2, num_heads=2, patch_size=8, mask_k_bias=True)
  for head in (config.dino, config.ibot):
    head.update(prototypes=32, hidden=16, bottleneck=8)
  state = jax.jit(lambda: init_state(config))()
  with Writer(folder / "run", keep=1, keep_every=0) as writer:
    writer.save(1, {"student": state.student, "teacher": state.teacher}, {}, config)
  export(folder / "run", "safetensors", folder / "out")
  return folder / "out"


def settings(images):
  """Of a tiny run on these images, which is frozen, then rises, then learns freely."""
  return {f"{head}.{key}": value for head in ("dino", "ibot") for key, value in dict(
    prototypes=32, hidden=16, bottleneck=8).items()} | {
    "koleo.group": 2, "crops.global_sizes": (16,), "crops.local_sizes": (8,), "crops.locals": 2,
    "data.source": images, "data.workers": 0, "train.steps": STEPS, "train.batch_size": 8,
    "train.dtype": "float32", "optim.freeze_backbone_steps": FREEZE,
    "optim.ramp_backbone_steps": RAMP, "schedules.momentum.warmup_steps": 6,
    "schedules.teacher_temp.warmup_steps": 6, "log_every": 1, "health.images": 0,
    "checkpoint.every": 2, "checkpoint.keep": 1, "checkpoint.keep_every": 0, "evals.every": 3,
    "evals.knn_k": 3, "evals.image_size": 16, "evals.pictures": 0, "evals.picture_size": 16,
    "evals.general": images, "evals.best": "general/knn_top1"}


def evaluated(workdir):
  return {line["step"]: (line["knn_top1"], line["general/knn_top1"]) for line in logged(workdir)
          if "general/knn_top1" in line}


@pytest.mark.slow
def test_killed_in_every_phase_it_ends_the_same_to_the_last_bit(weights, tiny_recipe, stored,
                                                                tmp_path):
  images = str(tiny_recipe.parent / "images")
  recipe = f"from configs import adapt\nconfig = adapt.get_config({str(weights)!r})"
  kills = [(step, "rough") for step in (2, 5, 8)]  # frozen, rising, free
  calm, rough = check_kills(recipe, settings(images), tmp_path, kills, stored)
  assert evaluated(calm) == evaluated(rough) and list(evaluated(calm)) == [0, 3, 6, 9]
  best = [json.loads((run / "checkpoints" / "best").read_text()) for run in (calm, rough)]
  assert best[0] == best[1]
  accuracies = {step: values[1] for step, values in evaluated(calm).items() if step}
  assert best[0]["value"] == max(accuracies.values())
  assert best[0]["step"] == min(step for step, x in accuracies.items() if x == best[0]["value"])
